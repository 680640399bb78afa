// Programs of others, as `edgepack demo --web` puts them beside the page; loaded when they are needed.

import { rooted } from "./place.js";

const place = (path) => rooted(`vendor/${path}`);

export const WLLAMA = { default: place("wllama/wllama.wasm") };
export const WLLAMA_COMPAT = { wasm: place("wllama-compat/wllama.wasm"), worker: place("wllama-compat/wllama.js") };
export const ORT = place("ort/");

export const wllama = () => import("../vendor/wllama/index.min.js");
export const ort = () => import("../vendor/ort/ort.wasm.min.mjs");

/** {Template, Tokenizer}. */
export async function texts() {
  const [jinja, tokenizers] = await Promise.all([
    import("../vendor/jinja/index.js"), import("../vendor/tokenizers/tokenizers.min.mjs"),
  ]);
  return { Template: jinja.Template, Tokenizer: tokenizers.Tokenizer };
}
