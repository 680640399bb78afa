// Tokens that Transformers.js says after some, and its encoding of a text:
// MODULES FOLDER DTYPE COUNT TEXT ID…
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, folder, dtype, count, text, ...ids] = process.argv.slice(2);
const entry = createRequire(path.join(modules, "x.js")).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import(pathToFileURL(entry));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + "/";
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype, device: "cpu" });
const shape = [1, ids.length];
const out = await model.generate({
  input_ids: new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), shape),
  attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
  max_new_tokens: Number(count),
  min_new_tokens: Number(count),
  do_sample: false,
});
const said = Array.from(out.data, Number).slice(ids.length);
console.log(JSON.stringify({ said, text: tokenizer.encode(text, { add_special_tokens: false }) }));
