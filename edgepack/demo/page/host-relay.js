// A relay on this machine as host (`edgepack demo`): requests by POST, events as lines of one long answer.
// Its token comes in the address that the terminal shows, and stays with this tab.

const KEY = "edgepack.token";

export async function connect(receive) {
  const given = /^#token=([\w-]+)$/.exec(location.hash);
  if (given) {
    sessionStorage.setItem(KEY, given[1]);
    history.replaceState(null, "", `${location.pathname}#/`);
  }
  const headers = { authorization: `Bearer ${sessionStorage.getItem(KEY) || ""}` };
  const relay = new Relay(headers, receive);
  await relay.listen();
  return relay;
}

class Relay {
  constructor(headers, receive) {
    this.headers = headers;
    this.receive = receive;
    this.next = null; // number of the first event that we have not seen
    this.waiting = Promise.resolve();
  }

  /** Requests go out one after another, so that they arrive in order. */
  post(request) {
    if (request.do === "import") this.upload(request);
    else if (request.do === "cancel" && request.to === "app") this.abort(request);
    else if (request.do === "share") this.download(request);
    else this.waiting = this.waiting.then(() => this.send(request));
  }

  async send(request) {
    try {
      const answer = await fetch("api/post", {
        method: "POST",
        headers: { ...this.headers, "content-type": "application/json" },
        body: JSON.stringify(request),
      });
      if (!answer.ok) this.fail(request, await answer.text());
    } catch {
      this.fail(request, null);
    }
  }

  fail(request, message) {
    this.receive({ id: request.id, event: "failed", from: "app", message: message || LOST, lost: message === null });
  }

  /** Read events for as long as the page lives; resolves when the first connection stands. */
  async listen() {
    const lines = await this.connect();
    this.read(lines);
  }

  async connect() {
    const query = this.next === null ? "" : `?next=${this.next}`;
    const answer = await fetch(`api/events${query}`, { headers: this.headers });
    if (answer.status === 401 || answer.status === 403) throw new Refused(await answer.text());
    if (!answer.ok) throw new Error(await answer.text());
    return answer.body.pipeThrough(new TextDecoderStream()).getReader();
  }

  async read(reader) {
    for (let tries = 0; ; tries += 1) {
      try {
        reader ??= await this.connect();
        if (tries) this.receive({ id: null, event: "host", connected: true });
        tries = 0;
        await this.readLines(reader);
      } catch (error) {
        if (error instanceof Refused) {
          this.receive({ id: null, event: "host", connected: false, message: error.message });
          return;
        }
      }
      reader = null;
      if (tries === 0) this.receive({ id: null, event: "host", connected: false });
      await new Promise((resolve) => setTimeout(resolve, Math.min(3000, 250 * 2 ** tries)));
    }
  }

  async readLines(reader) {
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter(Boolean)) {
        const { number, ...event } = JSON.parse(line);
        if (number !== undefined) this.next = number + 1;
        if (event.event !== "alive") this.receive(event);
      }
    }
  }

  /** Let the person choose files, and send them: a model and its factors, or an adapter. */
  async upload(request) {
    const files = await choose(request.kind === "model");
    if (files.length === 0) {
      this.receive({ id: request.id, event: "cancelled", from: "app" });
      return;
    }
    const all = files.reduce((sum, file) => sum + file.size, 0) || 1;
    let before = 0;
    for (const [i, file] of files.entries()) {
      const query = new URLSearchParams({ id: request.id, kind: request.kind, name: file.name, part: i + 1, of: files.length });
      if (request.model) query.set("model", request.model);
      const sent = await this.sendFile(request.id, query, file, (loaded) => this.receive({
        id: request.id, event: "progress", from: "app", share: 0.999 * (before + loaded) / all, label: file.name }));
      if (sent === "aborted") {
        this.receive({ id: request.id, event: "cancelled", from: "app" });
        return;
      }
      if (sent !== true) {
        this.fail(request, sent);
        return;
      }
      before += file.size;
    }
  }

  abort(request) {
    if (this.sending?.of === request.request) this.sending.abort();
    this.receive({ id: request.id, event: "done", from: "app" });
  }

  /** True, or why a file could not be sent. */
  sendFile(id, query, file, told) {
    return new Promise((resolve) => {
      const sending = new XMLHttpRequest(); // fetch does not tell how much was sent
      this.sending = { of: id, abort: () => sending.abort() };
      sending.addEventListener("abort", () => resolve("aborted"));
      sending.open("POST", `api/import?${query}`);
      sending.setRequestHeader("authorization", this.headers.authorization);
      sending.upload.addEventListener("progress", (event) => told(event.loaded));
      sending.addEventListener("load", () => resolve(sending.status === 202 || sending.responseText));
      sending.addEventListener("error", () => resolve(null));
      sending.send(file);
    });
  }

  async download(request) {
    try {
      const query = new URLSearchParams({ model: request.model, adapter: request.adapter });
      const answer = await fetch(`api/adapter?${query}`, { headers: this.headers });
      if (!answer.ok) throw new Error(await answer.text());
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `${request.adapter}.gguf`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      this.receive({ id: request.id, event: "shared", from: "app" });
    } catch (error) {
      this.fail(request, error.message);
    }
  }
}

const LOST = "the program in the terminal does not answer";

class Refused extends Error {}

function choose(several) {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = ".gguf";
    input.multiple = several;
    input.addEventListener("change", () => resolve([...input.files].slice(0, 2)));
    input.addEventListener("cancel", () => resolve([]));
    input.click();
  });
}
