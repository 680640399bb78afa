import assert from "node:assert/strict";
import { test } from "node:test";

const { inline, parse } = await import(`${process.env.PAGE}/markdown.js`);

const text = (children) => children.map((child) => (typeof child === "string" ? child : child.text ?? text(child.children ?? []))).join("");

test("paragraphs, headings, rules", () => {
  assert.deepEqual(parse("one\n\ntwo\n# Three\n---").map((block) => block.kind), ["paragraph", "paragraph", "heading", "rule"]);
});

test("lists with other lists in them", () => {
  const [list] = parse("1. one\n   - in it\n   - more\n2. two");
  assert.equal(list.kind, "list");
  assert.equal(list.ordered, true);
  assert.equal(list.items.length, 2);
  assert.equal(list.items[0][1].kind, "list");
  assert.equal(list.items[0][1].items.length, 2);
  assert.equal(parse("3) x")[0].start, 3);
});

test("code keeps everything", () => {
  const [code] = parse("```js\nif (a < b) **x**\n\n# no heading\n```");
  assert.deepEqual(code, { kind: "code", language: "js", text: "if (a < b) **x**\n\n# no heading" });
  assert.equal(parse("```\nnot closed yet")[0].text, "not closed yet");
});

test("bold, italic, code in a line", () => {
  assert.deepEqual(inline("a **b** `c*d*` *e*"), ["a ", { kind: "strong", children: ["b"] }, " ", { kind: "code", text: "c*d*" }, " ", { kind: "em", children: ["e"] }]);
  assert.deepEqual(inline("2 * 3 * 4"), ["2 * 3 * 4"]);
  assert.deepEqual(inline("snake_case_name"), ["snake_case_name"]);
  assert.deepEqual(inline("**not closed"), ["**not closed"]);
});

test("HTML and links stay text", () => {
  const [block] = parse("<img src=x onerror=alert(1)> [a](javascript:alert(1))");
  assert.equal(text(block.children), "<img src=x onerror=alert(1)> [a](javascript:alert(1))");
});

test("any text ends, and loses no letters", () => {
  const letters = "ab *_`#>-1.\n\t ~\\[]";
  let seed = 7;
  const random = () => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed / 2147483648; };
  for (let i = 0; i < 3000; i += 1) {
    const given = Array.from({ length: 60 }, () => letters[Math.floor(random() * letters.length)]).join("");
    const found = JSON.stringify(parse(given));
    for (const letter of "ab") assert.equal(found.split(`${letter}`).length >= 1, true);
    const count = (where) => [...where].filter((c) => c === "a").length;
    const shown = (blocks) => blocks.flatMap((block) => (typeof block === "string" ? [block] : [block.text ?? "", block.language ?? "", ...shown(block.children ?? []), ...(block.items ?? []).flatMap(shown)]));
    assert.equal(count(shown(parse(given)).join("")), count(given), JSON.stringify(given));
  }
});

test("deep nesting does not break it", () => {
  assert.ok(parse(`${">".repeat(5000)} x`).length);
  assert.ok(parse(`${"*".repeat(20000)}x`).length);
  assert.ok(parse(Array.from({ length: 3000 }, (_, i) => `${" ".repeat(i)}- x`).join("\n")).length);
});
