// Writes an adapter as a GGUF file for llama.cpp, with the names and types that edgepack uses.

import { toHalf } from "./half.js";

const ALIGNMENT = 32, F16 = 1;
const UINT32 = 4, FLOAT32 = 6, STRING = 8;

/** Where each trained matrix goes: `parameters` are those of training.json, with `tensor` (its name in
 * GGUF) and `rows` (the order of an L's rows in the file, or null). `theta` is the flat vector. */
export function writeAdapter({ architecture, name, marks, parameters, theta }) {
  const metadata = [
    ["general.architecture", STRING, architecture],
    ["general.type", STRING, "adapter"],
    ["adapter.type", STRING, "lora"],
    ["adapter.lora.alpha", FLOAT32, 0], // llama.cpp then multiplies L·R by 1
    ["general.quantization_version", UINT32, 2],
    ...(name ? [["general.name", STRING, name]] : []),
    ...Object.entries(marks).map(([key, text]) => [key, STRING, text]),
  ];
  const tensors = parameters.map((parameter) => ({
    name: parameter.tensor,
    shape: [parameter.shape[1], parameter.shape[0]], // transposed: theta holds [in, rank] and [rank, out]
    values: stored(parameter, theta),
  }));
  return writeGguf(metadata, tensors);
}

/** A matrix as GGUF stores it, row by row, in float16. */
function stored({ offset, shape: [height, width], rows }, theta) {
  const values = new Uint16Array(height * width);
  for (let row = 0; row < width; row += 1) {
    const source = rows ? rows[row] : row;
    for (let column = 0; column < height; column += 1) {
      values[row * height + column] = toHalf(theta[offset + column * width + source]);
    }
  }
  return values;
}

/** Bytes of a GGUF 3 file: metadata is [key, type, value], tensors are float16, `shape` [rows, columns]. */
export function writeGguf(metadata, tensors) {
  const out = new Writer();
  out.bytes(new TextEncoder().encode("GGUF"));
  out.uint32(3);
  out.uint64(tensors.length);
  out.uint64(metadata.length);
  for (const [key, type, value] of metadata) {
    out.text(key);
    out.uint32(type);
    if (type === STRING) out.text(value);
    else if (type === FLOAT32) out.float32(value);
    else out.uint32(value);
  }
  let offset = 0;
  for (const { name, shape, values } of tensors) {
    out.text(name);
    out.uint32(shape.length);
    for (const size of [...shape].reverse()) out.uint64(size);
    out.uint32(F16);
    out.uint64(offset);
    offset += Math.ceil(values.byteLength / ALIGNMENT) * ALIGNMENT;
  }
  out.pad();
  for (const { values } of tensors) {
    out.bytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    out.pad();
  }
  return out.finish();
}

class Writer {
  constructor() {
    this.data = new Uint8Array(1 << 16);
    this.length = 0;
  }

  room(bytes) {
    const needed = this.length + bytes;
    if (needed > this.data.length) {
      const larger = new Uint8Array(Math.max(needed, 2 * this.data.length));
      larger.set(this.data);
      this.data = larger;
    }
    this.length = needed;
    return new DataView(this.data.buffer, needed - bytes, bytes);
  }

  bytes(values) {
    this.room(values.length);
    this.data.set(values, this.length - values.length);
  }

  uint32(value) { this.room(4).setUint32(0, value, true); }
  uint64(value) { this.room(8).setBigUint64(0, BigInt(value), true); }
  float32(value) { this.room(4).setFloat32(0, value, true); }

  text(value) {
    const encoded = new TextEncoder().encode(value);
    this.uint64(encoded.length);
    this.bytes(encoded);
  }

  pad() { this.room((ALIGNMENT - (this.length % ALIGNMENT)) % ALIGNMENT); }
  finish() { return this.data.slice(0, this.length); }
}
