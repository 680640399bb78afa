// wllama (llama.cpp as wasm) with a model in it.

import { Problem } from "./problem.js";
import { WLLAMA, WLLAMA_COMPAT, wllama as wllamaModule } from "./vendor.js";

/** All files go in as one list of Blobs: llama.cpp opens the first one as the
 * model, and the others by the names that wllama gives them. */
export async function started(model, context, threads) {
  const { Wllama } = await wllamaModule();
  const silent = { debug() {}, log() {}, warn() {}, error() {} };
  const runtime = new Wllama(WLLAMA, { suppressNativeLog: true, logger: silent });
  runtime.setCompat(WLLAMA_COMPAT, "safari"); // for browsers without JSPI or Memory64
  const blobs = [model.base, ...(model.factors ? [model.factors] : []), ...model.adapters].map((blob) => blob.slice());
  const pad = (number) => String(number).padStart(5, "0");
  const path = (number) => `models/model-${pad(number)}-of-${pad(blobs.length)}.gguf`;
  try {
    await runtime.loadModel(blobs, {
      n_ctx: context, n_threads: threads, n_gpu_layers: 0, n_parallel: 1, warmup: false,
      lora_adapters: blobs.slice(1).map((_, index) => ({ path: path(index + 2), scale: 1 })),
    });
    if (!runtime.getLoadedContextInfo().n_vocab) throw new Error("not loaded");
  } catch (error) {
    await runtime.exit().catch(() => {});
    console.warn(error);
    throw new Problem("this browser's runtime cannot load the model", "close other tabs, or try a smaller model");
  }
  return runtime;
}
