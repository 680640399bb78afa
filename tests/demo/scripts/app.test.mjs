import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.localStorage = { getItem: () => null, setItem: () => {} };
const { App } = await import(`${process.env.PAGE}/app.js`);

/** An app whose host is the worker of `answers`, and what it was asked. */
function started() {
  const app = new App();
  const asked = [];
  app.client.listen((event) => app.hear(event));
  app.client.host = { post: (request) => {
    asked.push(request.do);
    const last = { load: "loaded", chat: "ended" }[request.do];
    queueMicrotask(() => app.client.receive({ id: request.id, event: last, from: "chat" }));
  } };
  app.models = [{ id: "m", sha256: "s", adapters: [], problem: null }];
  app.settings.model = "m";
  return { app, asked };
}

test("a model is loaded once, and again when another tab has loaded one", async () => {
  const { app, asked } = started();
  await app.chat([], [], () => {}).done;
  await app.chat([], [], () => {}).done;
  assert.deepEqual(asked, ["load", "chat", "chat"]);
  app.client.receive({ id: "of another tab", event: "loaded", from: "chat" });
  await app.chat([], [], () => {}).done;
  assert.deepEqual(asked.slice(3), ["load", "chat"]);
});
