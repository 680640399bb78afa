// Reads the header of a GGUF file, and checks that all of its tensors lie in the file.
// The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

import { Problem } from "./problem.js";

const MAGIC = 0x46554747;
const FIRST_READ = 1 << 20;
const LONGEST_HEADER = 256 << 20;
const MOST_TENSORS = 1 << 20;
const STRING = 8, ARRAY = 9;
const SCALARS = {
  0: [1, "getUint8"], 1: [1, "getInt8"], 2: [2, "getUint16"], 3: [2, "getInt16"], 4: [4, "getUint32"],
  5: [4, "getInt32"], 6: [4, "getFloat32"], 7: [1, "getUint8"], 10: [8, "getBigUint64"],
  11: [8, "getBigInt64"], 12: [8, "getFloat64"],
};
// enum ggml_type → values and bytes of a block
const BLOCKS = {
  0: [1, 4], 1: [1, 2], 2: [32, 18], 3: [32, 20], 6: [32, 22], 7: [32, 24], 8: [32, 34], 9: [32, 40],
  10: [256, 84], 11: [256, 110], 12: [256, 144], 13: [256, 176], 14: [256, 210], 15: [256, 292],
  16: [256, 66], 17: [256, 74], 18: [256, 98], 19: [256, 50], 20: [32, 18], 21: [256, 110], 22: [256, 82],
  23: [256, 136], 24: [1, 1], 25: [1, 2], 26: [1, 4], 27: [1, 8], 28: [1, 8], 29: [256, 56], 30: [1, 2],
  34: [256, 54], 35: [256, 66], 39: [32, 17], 40: [64, 36], 41: [128, 18], 42: [64, 18],
};

class Short extends Error {}

class Reader {
  constructor(buffer) {
    this.view = new DataView(buffer);
    this.at = 0;
    this.decoder = new TextDecoder();
  }

  take(bytes) {
    if (this.at + bytes > this.view.byteLength) throw new Short();
    this.at += bytes;
    return this.at - bytes;
  }

  scalar(type) {
    const known = SCALARS[type];
    if (!known) throw new Problem("the file is damaged: its header has a value of an unknown kind");
    const value = this.view[known[1]](this.take(known[0]), true);
    return typeof value === "bigint" ? Number(value) : value;
  }

  count() {
    const value = this.scalar(10);
    if (value > LONGEST_HEADER) throw new Problem("the file is damaged: its header says it is too long");
    return value;
  }

  text() {
    const length = this.count();
    const start = this.take(length);
    return this.decoder.decode(new Uint8Array(this.view.buffer, start, length));
  }

  value(type) {
    if (type === STRING) return this.text();
    if (type !== ARRAY) return this.scalar(type);
    const [kind, count] = [this.scalar(4), this.count()];
    if (kind === ARRAY) throw new Problem("the file is damaged: its header has lists of lists");
    return Array.from({ length: count }, () => this.value(kind));
  }
}

/** {architecture, metadata (Map), tensors: [{name, shape, type, bytes}], bytes}. Refuses files that are
 * no GGUF, damaged, or shorter than their header says. */
export async function readGguf(blob) {
  for (let size = FIRST_READ; ; size *= 4) {
    const buffer = await blob.slice(0, size).arrayBuffer();
    try {
      return parse(new Reader(buffer), blob.size);
    } catch (error) {
      if (!(error instanceof Short)) throw error;
      if (buffer.byteLength >= blob.size || size >= LONGEST_HEADER) throw truncated();
    }
  }
}

function truncated() {
  return new Problem("the file is not whole: it ends before its header says", "copy or download it again");
}

function parse(reader, size) {
  if (reader.scalar(4) !== MAGIC) throw new Problem("the file is no GGUF", "choose a file that ends in .gguf");
  const version = reader.scalar(4);
  if (version !== 2 && version !== 3) throw new Problem(`the file is GGUF ${version}, and only 2 and 3 are read`);
  const [tensorCount, keyCount] = [reader.count(), reader.count()];
  if (tensorCount > MOST_TENSORS || keyCount > MOST_TENSORS) throw new Problem("the file is damaged");
  const metadata = new Map();
  for (let i = 0; i < keyCount; i += 1) {
    const key = reader.text();
    metadata.set(key, reader.value(reader.scalar(4)));
  }
  const tensors = Array.from({ length: tensorCount }, () => tensor(reader));
  const alignment = metadata.get("general.alignment") ?? 32;
  const start = Math.ceil(reader.at / alignment) * alignment;
  if (tensors.some(({ offset, bytes }) => start + offset + bytes > size)) throw truncated();
  const architecture = metadata.get("general.architecture");
  if (typeof architecture !== "string") throw new Problem("the file does not say which architecture it has");
  return { architecture, metadata, tensors, bytes: size };
}

function tensor(reader) {
  const name = reader.text();
  const dimensions = reader.scalar(4);
  if (dimensions > 4) throw new Problem("the file is damaged: a tensor has too many dimensions");
  const shape = Array.from({ length: dimensions }, () => reader.scalar(10));
  const type = reader.scalar(4);
  const offset = reader.scalar(10);
  const block = BLOCKS[type];
  if (!block) throw new Problem(`the file has tensors of type ${type}, which is not known here`);
  const count = shape.reduce((product, value) => product * value, 1);
  return { name, shape, type, offset, count, bytes: Math.ceil(count / block[0]) * block[1] };
}

/** What `inspected` says of a file (docs/workers.md). */
export function describe({ architecture, metadata, tensors, bytes }) {
  const isAdapter = metadata.get("general.type") === "adapter";
  const digest = metadata.get("edgepack.base.digest") ?? null;
  const holdsFactors = metadata.has("edgepack.holds_factors");
  return {
    kind: !isAdapter ? "model" : digest && !holdsFactors ? "adapter" : "factors",
    name: metadata.get("general.name") ?? "",
    architecture,
    parameters: tensors.reduce((sum, { count }) => sum + count, 0),
    bytes,
    context_length: metadata.get(`${architecture}.context_length`) ?? 0,
    chat_template: typeof metadata.get("tokenizer.chat_template") === "string",
    base_digest: digest,
  };
}
