// The worker that trains: requests come as messages, events go back. One job at a time.

import { failed, Problem } from "./problem.js";
import { planned, prepared } from "./tune-plan.js";
import { train } from "./tune-steps.js";

let running = null; // {id, cancelled}

const memories = watched();

self.onmessage = async ({ data: request }) => {
  if (request.do === "cancel") {
    if (running?.id === request.request) running.cancelled = true;
    return;
  }
  const tell = (event, last = false) => self.postMessage({ id: request.id, last, ...event });
  try {
    await (request.do === "plan" ? plan(request, tell) : alone(() => job(request, tell)));
  } catch (error) {
    console.warn(error);
    const ended = !(error instanceof Problem);
    tell({ ...failed(ended ? new Problem(reason(error), "what was saved is kept") : error), ...(ended ? { ended } : {}) }, true);
  }
};

async function plan(request, tell) {
  tell(planned(await prepared(request)), true);
}

async function job(request, tell) {
  running = { id: request.id, cancelled: false };
  try {
    const work = await prepared(request);
    tell(planned(work));
    tell(await train(work, running, tell, memory), true);
  } finally {
    running = null;
  }
}

/** Only one tab trains: two would overwrite one another's state. */
async function alone(act) {
  if (running) throw new Problem("a training is running", "stop it first");
  if (!navigator.locks) return act();
  return navigator.locks.request("edgepack-tune", { ifAvailable: true }, (lock) => {
    if (!lock) throw new Problem("another tab of this page is training", "wait for it, or stop it there");
    return act();
  });
}

function reason(error) {
  return /memory|allocat|RangeError/i.test(String(error)) ? "there is not enough memory for training here" : "the training's runtime has stopped";
}

/** Memories that wasm asks for from now on: what a browser tells of memory. */
function watched() {
  const found = [];
  const Memory = WebAssembly.Memory;
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor) {
      super(descriptor);
      found.push(this);
    }
  };
  return found;
}

/** Bytes of wasm's memory, which never shrinks. */
function memory() {
  const bytes = memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0);
  return { anonymous: bytes, mapped: 0, peak: bytes };
}
