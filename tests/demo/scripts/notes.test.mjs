import assert from "node:assert/strict";
import { test } from "node:test";

const { adapterName, bytesOf, halfRows, parseNotes, toRow, usableRows } = await import(`${process.env.PAGE}/notes.js`);

test("questions and answers", () => {
  const { rows } = parseNotes("Q: What is my dog called?\nA: Biscuit.\n\nFrage: Wann?\nAntwort: Um\nneun.");
  assert.deepEqual(rows, [
    { prompt: "What is my dog called?", completion: "Biscuit." },
    { prompt: "Wann?", completion: "Um\nneun." },
  ]);
  assert.deepEqual(parseNotes("a => b\nc → d").rows, [{ prompt: "a", completion: "b" }, { prompt: "c", completion: "d" }]);
  assert.deepEqual(parseNotes("a\tb\nc\td").rows, [{ prompt: "a", completion: "b" }, { prompt: "c", completion: "d" }]);
});

test("JSON lines in all spellings, with the lines that are wrong", () => {
  const { rows, problems } = parseNotes([
    '{"prompt": "a", "completion": "b"}',
    '{"instruction": "a", "input": "x", "output": "b"}',
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    "{broken",
    '{"text": "t"}',
    '{"prompt": 3, "completion": "b"}',
  ].join("\n"));
  assert.equal(rows.length, 4);
  assert.deepEqual(rows[1], { prompt: "a\n\nx", completion: "b" });
  assert.deepEqual(problems, [{ line: 4, key: "notes.notJson" }, { line: 6, key: "notes.notRow" }]);
  assert.equal(parseNotes('[{"text": "t"}, 1]').rows.length, 1);
});

test("texts, and nothing", () => {
  assert.deepEqual(parseNotes("one\nstill one\n\ntwo").rows, [{ text: "one\nstill one" }, { text: "two" }]);
  assert.deepEqual(parseNotes(" \n ").rows, []);
  assert.deepEqual(parseNotes("\uFEFF{\"text\": \"t\"}").rows, [{ text: "t" }]);
  assert.equal(toRow(null), null);
  assert.equal(toRow({ messages: [{ role: "user", content: "a" }] }), null);
});

test("10,000 notes and a note of 1 MB", () => {
  const many = Array.from({ length: 10000 }, (_, i) => `{"prompt": "q${i}", "completion": "a"}`).join("\n");
  assert.equal(parseNotes(many).rows.length, 10000);
  const [row] = parseNotes("x ".repeat(500000)).rows;
  assert.equal(row.text.length, 999999);
  assert.ok(bytesOf([row]) > 999999);
  assert.equal(parseNotes("🦊 => كلب").rows[0].completion, "كلب");
});

test("what is written half", () => {
  const rows = [{ prompt: "a", completion: "" }, { prompt: "", completion: "" }, { prompt: "a", completion: "b" }, { text: "" }];
  assert.deepEqual(halfRows(rows), [0]);
  assert.deepEqual(usableRows(rows), [{ prompt: "a", completion: "b" }]);
});

test("names are names of adapters", () => {
  const rule = /^(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-]|[A-Za-z0-9_])$/; // edgepack.core.adapters.NAME
  for (const given of ["My notes", "Früh / spät", "..", "../../x", "a.", "x".repeat(200), "-a-", "a..b."]) {
    const name = adapterName(given);
    if (name) assert.match(name, rule, given);
  }
  assert.equal(adapterName("Früh & spät"), "Fruh-spat");
  assert.equal(adapterName("🦊"), "");
});
