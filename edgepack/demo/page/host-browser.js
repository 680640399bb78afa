// The browser itself as host: nothing but this page answers (docs/browser.md).

import { App } from "./browser/app.js";
import { Bench } from "./browser/bench.js";
import { Chat } from "./browser/chat.js";
import { isRequest } from "./browser/fields.js";
import { Models } from "./browser/models.js";
import { offline } from "./browser/offline.js";
import { failed, Problem } from "./browser/problem.js";
import { Tune } from "./browser/tune.js";

export async function connect(receive) {
  await offline();
  const models = new Models();
  const chat = new Chat(models);
  const tune = new Tune();
  const parts = { app: new App(models, tune), chat, tune, bench: new Bench(models, chat) };
  return { post: (request) => void answer(parts, request, receive) };
}

async function answer(parts, request, receive) {
  const from = request?.to;
  const tell = (event) => receive({ id: request?.id ?? null, from, ...event });
  try {
    if (!isRequest(request)) throw new Problem("this is no request: it needs id and do");
    if (!Object.hasOwn(parts, from)) throw new Problem("to should be app, chat, tune or bench");
    await parts[from].request(request, tell);
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    tell({ ...failed(error), ...(error.ended ? { ended: true } : {}) });
  }
}
