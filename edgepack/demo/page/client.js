// Requests to the host, and the events that come of them (docs/workers.md).

const LAST = {
  inspect: ["inspected"], load: ["loaded"], adapters: ["adapters"], chat: ["ended"], render: ["rendered"],
  plan: ["planned"], train: ["ended"], cancel: ["done"], bench: ["benched"], hello: ["hello"],
  models: ["models"], import: ["imported", "cancelled"], remove: ["removed"], share: ["shared", "cancelled"],
  jobs: ["jobs"], forget: ["forgotten"], device: ["device"],
};

/** What a worker or host says it cannot do. `ended`: the worker is gone. */
export class Failure extends Error {
  constructor({ message, hint = "", ended = false }) {
    super(message);
    this.hint = hint || "";
    this.ended = ended;
  }
}

/** Asks a host, which has `post(request)`; the host gives every event to `receive`. */
export class Client {
  constructor() {
    this.open = new Map();
    this.listeners = new Set();
    this.host = null;
  }

  /** Hear of events that belong to no request, such as `device`. */
  listen(listener) {
    this.listeners.add(listener);
  }

  /** A request. `onEvent` hears all its events; `done` resolves to the last one, or rejects with a `Failure`. */
  ask(to, request, onEvent = () => {}) {
    const id = newId();
    const done = new Promise((resolve, reject) => {
      this.open.set(id, { what: request.do, onEvent, resolve, reject });
    });
    done.catch(() => {}); // whoever asked may hear of it by `onEvent` alone
    this.host.post({ ...request, id, to });
    return { id, done, cancel: () => this.cancel(to, id) };
  }

  cancel(to, id) {
    this.host.post({ id: newId(), to, do: "cancel", request: id });
  }

  receive(event) {
    const entry = this.open.get(event.id);
    if (!entry) {
      for (const listener of this.listeners) listener(event);
      return;
    }
    const last = LAST[entry.what].includes(event.event);
    if (last || event.event === "failed") this.open.delete(event.id);
    entry.onEvent(event);
    if (last) entry.resolve(event);
    else if (event.event === "failed") entry.reject(new Failure(event));
  }
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}
