// Answers requests to `tune`, by a worker that trains (tune-worker.js). What is asked for is kept until it is
// done, so that a closed tab goes on.

import { field } from "./fields.js";
import { Problem } from "./problem.js";
import * as store from "./store.js";

const KEPT = ["do", "model", "adapter", "mode", "examples", "options", "threads"];

export class Tune {
  constructor() {
    this.worker = null;
    this.open = new Map(); // id → {tell, resolve, reject, …}
    this.alias = null; // the id of whoever attached to a training, and the training's own
  }

  async request(request, tell) {
    if (request.do === "cancel") {
      const asked = this.alias?.from === request.request ? this.alias.to : request.request;
      this.worker?.postMessage({ do: "cancel", request: asked });
      return tell({ event: "done" });
    }
    if (request.do !== "plan" && request.do !== "train") throw new Problem(`${request.do}: the page in a browser does not know this`);
    const key = keyOf(request);
    if (request.do === "train") {
      if (this.training?.key === key) return this.attach(request, tell);
      if (this.training) throw new Problem("a training is running", "stop it first");
      const kept = Object.fromEntries(KEPT.filter((name) => name in request).map((name) => [name, request[name]]));
      await store.put("jobs", key, { model: request.model, adapter: request.adapter, request: kept });
    }
    return new Promise((resolve, reject) => {
      const entry = { tell, resolve, reject, key, what: request.do, id: request.id, last: new Map() };
      this.open.set(request.id, entry);
      this.start().postMessage(request);
    });
  }

  /** The training that runs. */
  get training() {
    return [...this.open.values()].find(({ what }) => what === "train") ?? null;
  }

  /** Hear of the training that runs: what was said last, and all that comes. */
  attach(request, tell) {
    const entry = this.training;
    entry.resolve(); // whoever asked first hears no more of it
    this.alias = { from: request.id, to: entry.id };
    for (const event of entry.last.values()) tell(event);
    return new Promise((resolve, reject) => Object.assign(entry, { tell, resolve, reject }));
  }

  start() {
    if (this.worker) return this.worker;
    this.worker = new Worker(new URL("tune-worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { id, last, ...event } }) => this.hear(id, event, last);
    this.worker.onerror = (error) => {
      error.preventDefault();
      this.died();
    };
    return this.worker;
  }

  hear(id, event, last) {
    const entry = this.open.get(id);
    if (!entry) return;
    if (last) this.open.delete(id);
    if (["planned", "step"].includes(event.event)) entry.last.set(event.event, event);
    entry.tell(event);
    if (last) entry.resolve();
    if (event.ended) this.died();
  }

  /** The worker is gone: whoever waits hears of it, and the next request starts another. */
  died() {
    this.worker?.terminate();
    this.worker = null;
    for (const [id, { reject }] of this.open) {
      this.open.delete(id);
      const error = new Problem("the training's runtime has stopped", "it goes on from the last saved step when you start it again");
      error.ended = true;
      reject(error);
    }
  }
}

/** Where a training's request and state are kept. */
export function keyOf(request) {
  return `${field(request, "model", "text")}/${field(request, "adapter", "text")}`;
}
