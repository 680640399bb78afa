import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const { KEYS, t, textIn } = await import(`${process.env.PAGE}/texts.js`);
const { Client, Failure } = await import(`${process.env.PAGE}/client.js`);

const places = (text) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();

test("every text is there in both languages, with the same places", () => {
  const values = new Proxy({}, { get: (_, name) => (name === "count" ? undefined : `{${String(name)}}`) });
  for (const key of KEYS) {
    const [en, de] = ["en", "de"].map((code) => textIn(code, key, values));
    assert.ok(en && de, key);
    assert.deepEqual(places(en), places(de), key);
  }
});

test("texts depend on numbers", () => {
  assert.equal(textIn("en", "notes.count", { count: 1 }), "1 note");
  assert.equal(textIn("de", "notes.count", { count: 12000 }), "12.000 Notizen");
  assert.throws(() => t("no.such"), /no text/);
  assert.match(textIn("en", "message.dropped", { count: 3 }), /3 oldest messages were left out/);
  assert.match(textIn("en", "message.dropped", { count: 1 }), /oldest message was left out/);
});

test("the page asks for no text that is not there", () => {
  const known = new Set(KEYS);
  for (const folder of [process.env.PAGE, `${process.env.PAGE}/screens`]) {
    for (const file of readdirSync(folder).filter((name) => name.endsWith(".js"))) {
      const source = readFileSync(`${folder}/${file}`, "utf8");
      for (const [, key] of source.matchAll(/\bt\("([^"]+)"/g)) assert.ok(known.has(key), `${file}: ${key}`);
    }
  }
});

test("the page makes no HTML of texts", () => {
  for (const folder of [process.env.PAGE, `${process.env.PAGE}/screens`]) {
    for (const file of readdirSync(folder).filter((name) => name.endsWith(".js"))) {
      assert.doesNotMatch(readFileSync(`${folder}/${file}`, "utf8"), /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/, file);
    }
  }
});

test("a request hears its events, and its end", async () => {
  const client = new Client();
  const posted = [];
  client.host = { post: (request) => posted.push(request) };
  const heard = [];
  const request = client.ask("chat", { do: "chat", messages: [] }, (event) => heard.push(event.event));
  const [{ id, to }] = posted;
  assert.equal(to, "chat");
  assert.ok(id.length <= 64);
  for (const event of ["started", "text", "ended"]) client.receive({ id, event, from: "chat" });
  assert.equal((await request.done).event, "ended");
  assert.deepEqual(heard, ["started", "text", "ended"]);
  const other = client.ask("tune", { do: "train" });
  client.receive({ id: posted[1].id, event: "planned" }); // of `plan` alone this is the end
  client.receive({ id: posted[1].id, event: "failed", message: "gone", ended: true });
  await assert.rejects(other.done, (error) => error instanceof Failure && error.ended && error.message === "gone");
  const unasked = [];
  client.listen((event) => unasked.push(event.event));
  client.receive({ id: null, event: "device" });
  client.receive({ id, event: "text" });
  assert.deepEqual(unasked, ["device", "text"]);
});
