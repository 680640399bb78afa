// One answer of wllama's, as the events of docs/workers.md.

import { Problem } from "./problem.js";

/** The last event of an answer that was never begun. */
export function ending(reason, more = {}) {
  return {
    event: "ended", reason, tokens: 0, prompt_tokens: 0, cached_tokens: 0, prompt_tokens_per_second: 0,
    tokens_per_second: 0, first_token_seconds: 0, memory: null, ...more,
  };
}

/** Have a prompt continued; `tell` hears `started` and `text`. The `ended` event. */
export async function completion(runtime, prompt, options, signal, tell) {
  const start = performance.now();
  const found = { first: null, tokens: 0, prompt: 0, cached: 0, last: null, text: false };
  const begin = (progress) => {
    if (found.first === null) {
      [found.first, found.prompt, found.cached] = [0, progress?.total ?? 0, progress?.cache ?? 0];
      tell({ event: "started", prompt_tokens: found.prompt, cached_tokens: found.cached });
    }
  };
  const onData = (chunk) => {
    if (chunk.prompt_progress) begin(chunk.prompt_progress);
    if (chunk.timings) found.last = chunk;
    const text = chunk.choices?.[0]?.text;
    if (!text) return;
    begin(null);
    found.first ||= (performance.now() - start) / 1000;
    tell({ event: "text", text });
  };
  let reason;
  try {
    await runtime.createCompletion({
      ...options, prompt, stream: true, return_progress: true, timings_per_token: true, verbose: true,
      cache_prompt: true, onData, abortSignal: signal,
    });
    reason = reasonOf(found.last, options);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    reason = "cancelled";
  }
  begin(null);
  return ending(reason, measured(found));
}

function reasonOf(last, options) {
  const verbose = last?.__verbose;
  if (!verbose) throw new Problem("the model gave no answer");
  if (verbose.stop_type === "eos") return "end";
  if (verbose.stop_type === "word") return "stop";
  return verbose.tokens_predicted < options.n_predict ? "context" : "length";
}

function measured({ last, first, prompt, cached }) {
  const timings = last?.timings ?? {};
  return {
    tokens: timings.predicted_n ?? 0,
    prompt_tokens: prompt || (timings.prompt_n ?? 0) + (timings.cache_n ?? 0),
    cached_tokens: timings.cache_n ?? cached,
    prompt_tokens_per_second: timings.prompt_per_second ?? 0,
    tokens_per_second: timings.predicted_per_second ?? 0,
    first_token_seconds: first ?? 0,
  };
}
