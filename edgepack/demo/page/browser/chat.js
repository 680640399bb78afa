// Answers requests to `chat`: a packed GGUF, its factors and a person's adapters through wllama
// (llama.cpp as wasm).

import { field, messagesOf, scalesOf } from "./fields.js";
import { Problem } from "./problem.js";
import { completion, ending } from "./completion.js";
import { cannotChat, fastThreads } from "./features.js";
import { started } from "./runtime.js";

const LONGEST_CONTEXT = 4096;
const ROOM = 0.25; // share of the context that a prompt leaves to the answer, if the answer may be so long

export class Chat {
  /** `models` finds files and texts of models by id. */
  constructor(models) {
    this.models = models;
    this.loaded = null; // {runtime, model, text, adapters: [names], …}
    this.queue = Promise.resolve(); // answers are made one after another
    this.running = new Map(); // id → AbortController
  }

  /** Answer a request; `tell` takes its events. */
  async request(request, tell) {
    if (request.do === "cancel") {
      this.running.get(request.request)?.abort();
      return tell({ event: "done" });
    }
    const act = { inspect: this.inspect, load: this.load, adapters: this.adapters, chat: this.chat, render: this.render }[request.do];
    if (!act) throw new Problem(`${request.do}: the page in a browser does not know this`);
    const stopped = new AbortController();
    this.running.set(request.id, stopped);
    const turn = this.queue.then(() => act.call(this, request, tell, stopped.signal));
    this.queue = turn.catch(() => {});
    return turn.finally(() => this.running.delete(request.id));
  }

  async inspect(request, tell) {
    const found = await this.models.inspect(field(request, "file", "text", null) ?? field(request, "model", "text"));
    tell({ event: "inspected", ...found });
  }

  async load(request, tell) {
    const id = field(request, "model", "text");
    const wanted = field(request, "context", "count", 0);
    const threads = field(request, "threads", "count", 0) || fastThreads();
    const names = namesOf(request);
    const start = performance.now();
    const why = cannotChat();
    if (why) throw new Problem(why.message, why.hint);
    await this.close();
    const model = await this.models.open(id, names, (share) => tell({ event: "progress", share: 0.9 * share }));
    const context = Math.min(wanted || LONGEST_CONTEXT, model.header.context_length || LONGEST_CONTEXT);
    const runtime = await started(model, context, threads);
    tell({ event: "progress", share: 1 });
    this.loaded = { runtime, model, names, context, threads, text: model.text };
    tell({
      event: "loaded", seconds: (performance.now() - start) / 1000, name: model.name,
      architecture: model.header.architecture, context, threads: runtime.getNumThreads(),
      chat_template: model.text.hasTemplate, memory: null,
    });
  }

  /** Adapters can only be given to llama.cpp when it starts, so new ones start it again. */
  async adapters(request, tell) {
    const names = namesOf(request);
    const { model, context, threads } = this.need();
    const ids = await this.models.adapterIds(model.id, names);
    if (ids.join() !== model.adapterIds.join()) {
      await this.close();
      const again = await this.models.open(model.id, names);
      const runtime = await started(again, context, threads);
      this.loaded = { runtime, model: again, names, context, threads, text: again.text };
    }
    tell({ event: "adapters", names });
  }

  async chat(request, tell, signal) {
    const loaded = this.need();
    const messages = messagesOf(request);
    const options = sampling(request);
    options.lora = this.scales(scalesOf(request));
    const room = Math.min(options.n_predict, Math.floor(ROOM * loaded.context));
    for (let dropped = 0; ; dropped += 1) {
      const kept = shortened(messages, dropped);
      const fits = !loaded.text.tokenizer || loaded.text.prompt(kept).length + room <= loaded.context;
      if (!fits && shortened(messages, dropped + 1)) continue;
      const prompt = loaded.text.unbegun(kept, loaded.runtime.mustAddBosToken());
      try {
        await this.answer(prompt, options, dropped, tell, signal);
        return;
      } catch (error) {
        if (!/exceed|context size/i.test(error.message)) throw this.crashed(error);
        if (!shortened(messages, dropped + 1)) {
          throw new Problem("the message is longer than the model can read", "shorten it, or choose a longer context");
        }
      }
    }
  }

  async answer(prompt, options, dropped, tell, signal) {
    if (signal.aborted) return tell(ending("cancelled"));
    const { runtime } = this.need();
    tell(await completion(runtime, prompt, options, signal, (event) =>
      tell(event.event === "started" ? { ...event, dropped_messages: dropped } : event)));
  }

  async render(request, tell) {
    const { text } = this.need();
    const messages = messagesOf(request);
    const rendered = text.render(messages, field(request, "add_generation_prompt", "bool", false));
    tell({ event: "rendered", text: rendered, tokens: text.tokenizer ? text.begun(text.encode(rendered)) : [] });
  }

  /** llama.cpp's list of scales: the factors' is 1, adapters that are not named are off. */
  scales(given) {
    const { model, names } = this.need();
    const unknown = Object.keys(given).find((name) => !names.includes(name));
    if (unknown !== undefined) throw new Problem(`${unknown}: there is no such note set`);
    const all = [...(model.factors ? [1] : []), ...names.map((name) => given[name] ?? 0)];
    return all.map((scale, id) => ({ id, scale }));
  }

  need() {
    if (!this.loaded) throw new Problem("no model is loaded", "load one first");
    return this.loaded;
  }

  /** An error of the runtime ends it: wasm cannot go on after one. */
  crashed(error) {
    if (error instanceof Problem) return error;
    console.warn(error);
    this.close();
    const ended = new Problem("the model's runtime has stopped", "it is loaded again when you go on");
    ended.ended = true;
    return ended;
  }

  async close() {
    const loaded = this.loaded;
    this.loaded = null;
    await loaded?.runtime.exit();
  }
}

function namesOf(request) {
  const given = request.adapters ?? [];
  const names = Array.isArray(given) ? given : Object.keys(field(request, "adapters", "object"));
  if (!names.every((name) => typeof name === "string")) throw new Problem("adapters should be names");
  return names;
}

function sampling(request) {
  return {
    n_predict: field(request, "max_tokens", "count", 256),
    temperature: field(request, "temperature", "number", 0),
    top_k: field(request, "top_k", "count", 40),
    top_p: field(request, "top_p", "number", 0.95),
    min_p: field(request, "min_p", "number", 0.05),
    repeat_penalty: field(request, "repeat_penalty", "number", 1),
    seed: field(request, "seed", "count", 0),
    stop: field(request, "stop", "list", []),
  };
}

/** Messages without the oldest `count` turns; null where none is left to leave out. */
function shortened(messages, count) {
  const isFixed = (message, index) => message.role === "system" || index === messages.length - 1;
  const free = messages.filter((message, index) => !isFixed(message, index));
  if (count > free.length) return null;
  const gone = new Set(free.slice(0, count));
  return messages.filter((message) => !gone.has(message));
}
