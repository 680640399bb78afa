// Milliseconds a token of decoding in onnxruntime-web (wasm, one thread):
// MODULES GRAPH LAYERS KV_HEADS HEAD_DIM PROMPT STEPS
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, graph, ...numbers] = process.argv.slice(2);
const [layers, heads, width, prompt, steps] = numbers.map(Number);
const ort = createRequire(path.join(modules, "x.js"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const folder = path.dirname(graph);
const data = fs.readdirSync(folder).filter((f) => f.startsWith(path.basename(graph) + "_data"));
const externalData = data.map((f) => ({ path: f, data: fs.readFileSync(path.join(folder, f)) }));
const session = await ort.InferenceSession.create(fs.readFileSync(graph), {
  executionProviders: ["wasm"],
  externalData,
});
const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
let past = {};
for (let i = 0; i < layers; i++)
  for (const what of ["key", "value"])
    past[`past_key_values.${i}.${what}`] = new ort.Tensor("float32", [], [1, heads, 0, width]);
let length = 0;
const said = [];
async function step(ids) {
  length += ids.length;
  const feed = { input_ids: int64(ids), attention_mask: int64(Array(length).fill(1)), ...past };
  const out = await session.run(feed);
  past = {};
  for (const [name, value] of Object.entries(out))
    if (name !== "logits") past[name.replace("present", "past_key_values")] = value;
  const last = out.logits.data.subarray(-out.logits.dims[2]);
  return last.reduce((best, value, i) => (value > last[best] ? i : best), 0);
}
const start = performance.now();
let token = await step(Array.from({ length: prompt }, (_, i) => 3 + ((7 * i) % 400)));
const prefill = performance.now() - start;
const times = [];
for (let i = 0; i < steps; i++) {
  const before = performance.now();
  said.push(token);
  token = await step([token]);
  times.push(performance.now() - before);
}
times.sort((a, b) => a - b);
console.log(JSON.stringify({ decode: times[steps >> 1], prefill: prefill / prompt, said }));
