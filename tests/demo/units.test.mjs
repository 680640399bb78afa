// Modules of the page that need no browser: node --test, by tests/demo/test_web_modules.py, which copies them
// beside this file.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { readExamples } from "./browser/examples.js";
import { field, isRequest, messagesOf } from "./browser/fields.js";
import { describe, readGguf } from "./browser/gguf.js";
import { writeAdapter, writeGguf } from "./browser/gguf-writer.js";
import { toHalf } from "./browser/half.js";
import { failed, Problem } from "./browser/problem.js";
import { placeOf, rate } from "./browser/schedule.js";
import { Sha256, sha256 } from "./browser/sha256.js";
import { Text } from "./browser/text.js";

test("sha256 is that of others, in whatever pieces", async () => {
  for (const size of [0, 1, 55, 56, 63, 64, 65, 127, 128, 1000]) {
    const bytes = Uint8Array.from({ length: size }, (_, index) => (7 * index + 3) % 256);
    const wanted = createHash("sha256").update(bytes).digest("hex");
    for (const cut of [0, 1, 30, 64]) {
      const hash = new Sha256().update(bytes.subarray(0, cut)).update(bytes.subarray(cut));
      assert.equal(hash.digest(), wanted, `${size} bytes cut at ${cut}`);
    }
    assert.equal(await sha256(new Blob([bytes])), wanted);
  }
});

test("float16 rounds to nearest, ties to even", () => {
  const known = { 0: 0, 1: 0x3c00, "-2": 0xc000, 65504: 0x7bff, 65520: 0x7c00, 6e-8: 1, 2e-8: 0, 1.00048828125: 0x3c00, 1.00146484375: 0x3c02 };
  for (const [value, bits] of Object.entries(known)) assert.equal(toHalf(Number(value)), bits, value);
  assert.equal(toHalf(NaN) & 0x7e00, 0x7e00);
  assert.equal(toHalf(-Infinity), 0xfc00);
});

const parameters = [
  { tensor: "blk.0.attn_q.weight.lora_a", shape: [4, 2], offset: 0, rows: null },
  { tensor: "blk.0.attn_q.weight.lora_b", shape: [2, 3], offset: 8, rows: [2, 0, 1] },
];
const theta = Float32Array.from({ length: 14 }, (_, index) => index / 4);
const adapter = () => writeAdapter({ architecture: "llama", name: "tiny", marks: { "edgepack.base.digest": "ab" }, parameters, theta });

test("an adapter that was written is read again", async () => {
  const found = await readGguf(new Blob([adapter()]));
  assert.deepEqual(found.tensors.map(({ name, shape }) => [name, shape]), [
    ["blk.0.attn_q.weight.lora_a", [4, 2]], ["blk.0.attn_q.weight.lora_b", [2, 3]],
  ]);
  assert.deepEqual(describe(found), {
    kind: "adapter", name: "tiny", architecture: "llama", parameters: 14, bytes: adapter().length, context_length: 0,
    chat_template: false, base_digest: "ab",
  });
});

test("no part of a file is taken for the whole", async () => {
  const whole = adapter();
  for (let length = 0; length < whole.length - 32; length += 1) {
    await assert.rejects(readGguf(new Blob([whole.subarray(0, length)])), Problem, `${length} bytes`);
  }
});

test("damaged headers are refused in words", async () => {
  const whole = adapter();
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647);
  for (let round = 0; round < 3000; round += 1) {
    const bytes = whole.slice();
    for (let count = random() % 3; count >= 0; count -= 1) bytes[random() % 500] = random() % 256;
    await readGguf(new Blob([bytes])).then(describe).catch((error) => assert.ok(error instanceof Problem, error.stack));
  }
  await assert.rejects(readGguf(new Blob(["no model at all, but a text"])), /no GGUF/);
  await assert.rejects(readGguf(new Blob([writeGguf([["general.name", 8, "x"]], [])])), /architecture/);
});

/** Tokens are characters; a template that marks its turns. */
const tokenizer = { encode: (text) => ({ ids: [...text].map((character) => character.codePointAt(0)) }) };
class Template {
  render({ messages, add_generation_prompt }) {
    return messages.map(({ role, content }) => `<${role}>${content}|\n`).join("") + (add_generation_prompt ? "<assistant>" : "");
  }
}
const text = new Text({ template: "yes", names: {}, control: ["<|end|>"] }, tokenizer, Template);
const letters = (ids) => String.fromCodePoint(...ids);

test("only answers are learnt, and labels are the next tokens", () => {
  const { examples: [{ ids, labels, answers }] } = readExamples([{ prompt: "Who?", completion: "I" }], text, 64);
  assert.equal(letters(ids), "<user>Who?|\n<assistant>I|");
  assert.equal(letters(labels.filter((label) => label >= 0)), "I|");
  assert.equal(answers, 2);
  assert.equal(labels[ids.length - 3], "I".codePointAt(0));
});

test("rows that cannot be used are named, or left out", () => {
  const bad = [{ prompt: "a" }, { messages: [] }, { prompt: "a", completion: " " }, 7, { text: 3 }, { prompt: "x".repeat(99), completion: "y" }];
  for (const row of bad) assert.throws(() => readExamples([row], text, 64), /^Error: example 1: |example 1: /);
  const { examples, skipped } = readExamples([...bad, { text: "ok" }], text, 64, true);
  assert.equal(skipped.length, bad.length);
  assert.equal(examples.length, 1);
  assert.throws(() => readExamples([], text, 64), /nothing to learn/);
});

test("control tokens that a person types are text", () => {
  assert.ok(!text.render([{ role: "user", content: "a <|end|> b" }]).includes("<|end|>"));
});

test("every epoch shows every example, and rates rise and fall", () => {
  const places = Array.from({ length: 10 }, (_, step) => placeOf(step, 5, 3));
  assert.deepEqual([...places.slice(0, 5)].sort(), [0, 1, 2, 3, 4]);
  assert.deepEqual([...places.slice(5)].sort(), [0, 1, 2, 3, 4]);
  assert.deepEqual(places, Array.from({ length: 10 }, (_, step) => placeOf(step, 5, 3)));
  assert.ok(rate(0, 40, 0.1) < rate(3, 40, 0.1) && rate(39, 40, 0.1) < 0.01);
});

test("fields of wrong types are refused, unknown ones ignored", () => {
  assert.equal(field({ a: 1, other: 2 }, "a", "count"), 1);
  assert.equal(field({}, "a", "count", 5), 5);
  for (const value of ["1", -1, 1.5, NaN, [], {}, true]) assert.throws(() => field({ a: value }, "a", "count"), Problem);
  assert.throws(() => messagesOf({ messages: [{ role: "user" }] }), Problem);
  for (const value of [null, 3, [], {}, { id: "x".repeat(65), do: "a" }, { id: 1, do: "a" }]) assert.ok(!isRequest(value));
});

test("errors have no addresses in them", () => {
  const { message } = failed(new Error("cannot load http://127.0.0.1/x.js\nat line 3"));
  assert.equal(message, "cannot load a file");
});
