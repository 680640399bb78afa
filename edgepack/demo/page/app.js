// What all screens share: the host, the models, which of them is loaded, and what is kept.

import { Client } from "./client.js";
import { connect } from "./host.js";
import { History } from "./history.js";
import { clearSettings, openTables, readSetting, writeSetting } from "./storage.js";

const VERSION = 1;
export const SAMPLING = {
  temperature: 0, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.1, max_tokens: 512, seed: 0,
  context: 2048, threads: 0,
};
const DEFAULTS = {
  theme: "auto", model: null, notes: {}, system: "", sampling: SAMPLING, conversation: null, trained: 0, read: 0,
};

/** Events: `models`, `model`, `load`, `died`, `device`, `host`, `settings`, `full` (no room to keep). */
export class App extends EventTarget {
  constructor() {
    super();
    this.client = new Client();
    this.hello = null;
    this.models = null; // null: not known yet
    this.loaded = null; // `{model, adapters, key, ...}` of the chat's worker
    this.loading = null;
    this.settings = { ...DEFAULTS, ...readSetting("settings", VERSION, {}) };
    this.settings.sampling = { ...SAMPLING, ...this.settings.sampling };
    this.device = null;
    this.offered = null; // names of files that another app gave to this one
  }

  async start() {
    const tables = await openTables();
    this.kept = tables.kept;
    this.drafts = tables.drafts;
    this.history = new History(tables.conversations);
    this.client.listen((event) => this.hear(event));
    await Promise.all([this.history.load(), connect(this.client)]);
    this.hello = await this.client.ask("app", { do: "hello" }).done;
    await this.refresh();
  }

  tell(what, detail = null) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }

  on(what, listener) {
    this.addEventListener(what, (event) => listener(event.detail));
  }

  hear(event) {
    if (event.event === "device") {
      this.device = event;
      this.tell("device", event);
    } else if (event.event === "host") {
      if (!event.connected) this.forgetLoaded();
      this.tell("host", event);
    } else if (event.event === "offered") {
      this.offered = event.names;
      this.tell("offered");
    } else if (event.from === "chat" && (event.event === "loaded" || event.event === "adapters")) {
      this.forgetLoaded(); // another tab's: the worker has what that one chose
    } else if (event.event === "failed" && event.ended && event.from === "chat") this.died();
  }

  /** Change settings and keep them. */
  set(changes) {
    Object.assign(this.settings, changes);
    if (!writeSetting("settings", VERSION, this.settings)) this.tell("full");
    this.tell("settings", changes);
  }

  /** Read the list of models again. */
  async refresh() {
    const { models } = await this.client.ask("app", { do: "models" }).done;
    this.models = models;
    if (!this.model) {
      const usable = models.find((model) => !model.problem);
      this.set({ model: usable ? usable.id : null });
    }
    this.tell("models");
    return models;
  }

  /** The model that was chosen, or null. */
  get model() {
    return this.models?.find((model) => model.id === this.settings.model && !model.problem) ?? null;
  }

  choose(id) {
    this.set({ model: id });
    this.tell("model");
  }

  /** Note sets of a model that can be used. */
  usable(model = this.model) {
    return (model?.adapters ?? []).filter((adapter) => !adapter.problem).map((adapter) => adapter.name);
  }

  /** Those that are on. */
  notesOn(model = this.model) {
    const known = this.settings.notes[model?.id] ?? {};
    return this.usable(model).filter((name) => known[name]);
  }

  switchNotes(model, name, on) {
    const notes = { ...this.settings.notes, [model.id]: { ...this.settings.notes[model.id], [name]: on } };
    this.set({ notes });
  }

  /** Load the chosen model with its note sets, unless it is. */
  async ensureLoaded() {
    if (this.loading) return this.loading;
    const model = this.model;
    const adapters = this.usable(model);
    const { context, threads } = this.settings.sampling;
    const key = JSON.stringify([model.id, model.sha256, context, threads]);
    const files = JSON.stringify(model.adapters.map((adapter) => [adapter.name, adapter.created]));
    if (this.loaded?.key === key && this.loaded.files === files) return this.loaded;
    const again = this.loaded?.key === key;
    const request = again
      ? { do: "adapters", model: model.id, adapters }
      : { do: "load", model: model.id, adapters, context, threads };
    const before = this.loaded;
    this.loaded = null;
    this.loading = this.client.ask("chat", request, (event) => {
      if (event.event === "progress") this.tell("load", event.share);
    }).done.then((event) => {
      this.loaded = { ...(again ? before : event), key, files };
      return this.loaded;
    }).finally(() => {
      this.loading = null;
      this.tell("load", null);
    });
    this.tell("load", 0);
    this.loading.catch((error) => { if (error.ended) this.died(); });
    return this.loading;
  }

  /** Have the model answer; `onEvent` hears what comes. `stop()` ends it, `done` is as the client's. */
  chat(messages, notes, onEvent) {
    const { context, threads, ...sampling } = this.settings.sampling;
    const scales = Object.fromEntries(notes.map((name) => [name, 1]));
    let request = null;
    let stopped = false;
    let begun = false;
    const hear = (event) => {
      begun ||= event.event === "started";
      onEvent(event);
    };
    const run = async () => {
      const before = this.loaded;
      const loaded = await this.ensureLoaded();
      if (stopped) return { event: "ended", reason: "cancelled" };
      request = this.client.ask("chat", { do: "chat", messages, scales, ...sampling }, hear);
      try {
        return await request.done;
      } catch (error) {
        // a worker that ended before it was asked, or in that moment: it is started anew, once
        if (begun || stopped || before !== loaded) throw error;
        this.forgetLoaded();
        return run();
      }
    };
    const done = run().then((event) => {
      if (event.prompt_tokens - event.cached_tokens > 8) this.set({ read: event.prompt_tokens_per_second });
      return event;
    }, (error) => {
      if (error.ended) this.died();
      throw error;
    });
    const stop = () => {
      stopped = true;
      request?.cancel();
    };
    return { done, stop };
  }

  /** The chat's worker is gone: what was loaded in it must be loaded again. */
  died() {
    if (!this.loaded && this.gone) return;
    this.forgetLoaded();
    this.gone = true;
    this.tell("died");
    setTimeout(() => { this.gone = false; }, 1000);
  }

  forgetLoaded() {
    this.loaded = null;
  }

  /** Keep a conversation; says so where there is no room. */
  async keep(conversation) {
    try {
      await this.history.save(conversation);
    } catch {
      this.tell("full");
    }
  }

  /** Delete everything that the page has kept. */
  async deleteAll() {
    await this.history.clear();
    await this.drafts.clear();
    clearSettings();
  }
}
