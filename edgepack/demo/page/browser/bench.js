// Answers requests to `bench`: prompts and decoding through a runtime of its own, as bench.json
// (docs/bench.md).

import { fastThreads } from "./features.js";
import { field } from "./fields.js";
import { readGguf } from "./gguf.js";
import { Problem } from "./problem.js";
import { started } from "./runtime.js";
import { workOf } from "./work.js";

const REMARKS = [
  "measured in a browser: it tells neither the memory of the process nor how busy the machine is, and rounds its clock",
];
const UNKNOWN = { anonymous: null, mapped: null, peak: null };

export class Bench {
  constructor(models, chat) {
    this.models = models;
    this.chat = chat;
    this.running = null;
  }

  async request(request, tell) {
    if (request.do === "cancel") {
      if (this.running === request.request) this.running = null;
      return tell({ event: "done" });
    }
    if (request.do !== "bench") throw new Problem(`${request.do}: the page in a browser does not know this`);
    if (this.running) throw new Problem("a measurement is running", "stop it first");
    this.running = request.id;
    try {
      tell(await this.measure(request, tell));
    } finally {
      this.running = null;
    }
  }

  async measure(request, tell) {
    const asked = {
      prompt: field(request, "prompt", "count", 256), decode: field(request, "decode", "count", 64),
      rounds: field(request, "rounds", "count", 3), threads: field(request, "threads", "count", 0) || fastThreads(),
    };
    if (!(asked.prompt && asked.decode && asked.rounds)) throw new Problem("prompt, decode and rounds should be at least 1");
    const model = await this.models.open(field(request, "model", "text"), field(request, "adapters", "list", []));
    await this.chat.close(); // two models at once would take twice the memory
    const found = { loading: [], prompt: [], decode: [] };
    for (let round = 0; round < asked.rounds; round += 1) {
      const start = performance.now();
      const runtime = await started(model, asked.prompt + asked.decode + 8, asked.threads);
      found.loading.push((performance.now() - start) / 1000);
      found.threads = runtime.getNumThreads();
      try {
        await timed(runtime, model, 8, 2); // the first run is slower
        for (const [kind, seconds] of Object.entries(await timed(runtime, model, asked.prompt, asked.decode))) {
          if (this.running !== request.id) throw new Problem("the measurement was stopped");
          found[kind].push(seconds);
          tell({ event: "case", round, kind, tokens: asked[kind], seconds });
        }
      } finally {
        await runtime.exit();
      }
    }
    return { event: "benched", bench: await result(model, asked, found) };
  }
}

/** Seconds of a prompt and of decoding; what is decoded is whatever is likeliest. wllama takes prompts as text
 * alone, so that the time is that of so many tokens as were asked for, in proportion. */
async function timed(runtime, model, prompt, decode) {
  const text = Array.from({ length: prompt }, () => "hello").join(" "); // a token a word, or about so many
  const seen = [];
  await runtime.createCompletion({
    prompt: text, n_predict: decode + 1, temperature: 0, ignore_eos: true, cache_prompt: false, stream: true, timings_per_token: true,
    lora: [...(model.factors ? [1] : []), ...model.adapters.map(() => 1)].map((scale, id) => ({ id, scale })),
    onData: ({ timings }) => timings && seen.push(timings),
  });
  const [first, last] = [seen[0], seen.at(-1)];
  const tokens = last.predicted_n - first.predicted_n;
  const share = prompt / last.prompt_n;
  return { prompt: (share * last.prompt_ms) / 1000, decode: ((last.predicted_ms - first.predicted_ms) / tokens) * decode / 1000 };
}

async function result(model, asked, found) {
  const attached = await Promise.all([model.factors, ...model.adapters].filter(Boolean).map((blob) => readGguf(blob)));
  const bytes = [model.base, model.factors, ...model.adapters].reduce((sum, blob) => sum + (blob?.size ?? 0), 0);
  const timing = (kind) => ({
    case: { kind, tokens: asked[kind], depth: kind === "decode" ? asked.prompt : 0, batch: 1 }, threads: found.threads,
    seconds: found[kind], joules: [], memory: UNKNOWN,
  });
  return {
    schema_version: 1, edgepack: "browser", date: new Date().toISOString(), rounds: asked.rounds,
    device: { name: navigator.userAgent, cores: navigator.hardwareConcurrency ?? null },
    models: [{
      name: model.name, runtime: "wllama (llama.cpp as wasm)", features: globalThis.crossOriginIsolated ? "wasm, threads" : "wasm",
      file: "base.gguf", bytes, work: workOf(await readGguf(model.base), attached),
      loading: [{ threads: found.threads, seconds: found.loading, before: UNKNOWN, loaded: UNKNOWN, steady: UNKNOWN,
        peak: found.loading.map(() => 0) }],
      timings: [timing("prompt"), timing("decode")],
    }],
    ceilings: { memory: [], products: [] }, quiet: { others: null, stolen: null, before: {}, after: {} }, remarks: REMARKS,
  };
}
