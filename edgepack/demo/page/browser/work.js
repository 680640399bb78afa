// What a token asks of a machine, from the headers of a model's files: the numbers that bench.json keeps
// (edgepack/bench/work.py).

const EMBEDDING = "token_embd.weight", HEAD = "output.weight";
const NAMES = {
  0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k",
  13: "q5_k", 14: "q6_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
  22: "iq2_s", 23: "iq4_xs", 30: "bf16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 42: "q2_0",
};
const F16_BYTES = 2;
const nameOf = (type) => NAMES[type] ?? `type ${type}`;

/** `model` and `attached` (its factors and adapters) are headers of readGguf's. */
export function workOf(model, attached) {
  const tensors = new Map(model.tensors.map((tensor) => [tensor.name, tensor]));
  const head = tensors.get(HEAD) ?? tensors.get(EMBEDDING);
  const found = { types: {}, factor_types: {}, flops: 0, factors: 0 };
  for (const tensor of model.tensors) {
    if (tensor.name === EMBEDDING && tensors.has(HEAD)) continue;
    add(found.types, tensor);
    if (tensor.shape.length > 1 && tensor.name !== EMBEDDING && tensor.name !== HEAD) found.flops += 2 * tensor.count;
  }
  for (const tensor of attached.flatMap((header) => header.tensors)) {
    add(found.factor_types, tensor);
    found.factors += tensor.bytes;
    found.flops += 2 * tensor.count;
  }
  const { layers, heads, kvHeads, keys, values } = shapeOf(model);
  return {
    ...found, head: 2 * head.count, head_type: nameOf(head.type),
    cache: F16_BYTES * layers * kvHeads * (keys + values), attention: 4 * layers * heads * keys,
  };
}

function add(types, { type, bytes }) {
  types[nameOf(type)] = (types[nameOf(type)] ?? 0) + bytes;
}

function shapeOf({ architecture, metadata }) {
  const number = (key, otherwise = 0) => {
    const value = metadata.get(`${architecture}.${key}`) ?? otherwise;
    return Array.isArray(value) ? Math.max(...value) : value;
  };
  const heads = number("attention.head_count", 1);
  const width = number("embedding_length") / heads;
  return {
    layers: number("block_count"), heads, kvHeads: number("attention.head_count_kv", heads),
    keys: number("attention.key_length", width), values: number("attention.value_length", width),
  };
}
