// A little Markdown, as models write it: paragraphs, headings, lists, quotes, code, bold, italic.
// `parse` gives a tree of plain objects, `render` makes elements of it. Text stays text: no HTML, no
// links that can be followed, no pictures.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const DEEPEST = 6;

/** Blocks of a text: `{kind, children}`; `code` has `text`; `list` has `ordered`, `start`, `items`. */
export function parse(text, depth = 0) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const blocks = [];
  let paragraph = [];
  const end = () => {
    if (paragraph.length) blocks.push({ kind: "paragraph", children: inline(paragraph.join("\n")) });
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i += 1) {
    const line = lines[i];
    let match;
    if ((match = FENCE.exec(line))) {
      end();
      const code = [];
      const close = new RegExp(`^ {0,3}\\${match[1][0]}{${match[1].length},}\\s*$`);
      for (i += 1; i < lines.length && !close.test(lines[i]); i += 1) code.push(lines[i]);
      blocks.push({ kind: "code", language: match[2], text: code.join("\n") });
    } else if (!line.trim()) end();
    else if (RULE.test(line)) {
      end();
      blocks.push({ kind: "rule" });
    } else if ((match = HEADING.exec(line))) {
      end();
      blocks.push({ kind: "heading", level: match[1].length, children: inline(match[2]) });
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      end();
      const inner = [];
      for (; i < lines.length && (match = QUOTE.exec(lines[i])); i += 1) inner.push(match[1]);
      i -= 1;
      blocks.push({ kind: "quote", children: parse(inner.join("\n"), depth + 1) });
    } else if (ITEM.test(line) && depth < DEEPEST) {
      end();
      const [list, next] = parseList(lines, i, depth);
      blocks.push(list);
      i = next - 1;
    } else paragraph.push(line);
  }
  end();
  return blocks;
}

function parseList(lines, start, depth) {
  const first = ITEM.exec(lines[start]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let i = start;
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || match[1].length > indent + 1 || match[1].length < indent || /\d/.test(match[2]) !== ordered) break;
    const inner = [match[3]];
    for (i += 1; i < lines.length; i += 1) {
      const line = lines[i];
      const deeper = line.search(/\S/) > indent;
      const blank = !line.trim();
      if (blank && !(lines[i + 1]?.search(/\S/) > indent)) break;
      if (!blank && !deeper) break;
      inner.push(line.slice(Math.min(indent + match[2].length + 1, Math.max(0, line.search(/\S/)))));
    }
    items.push(parse(inner.join("\n"), depth + 1));
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i += 1;
  }
  return [{ kind: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items }, i];
}

const MARKS = [
  { open: /`+/y, kind: "code" },
  { open: /\*\*(?=\S)/y, kind: "strong", close: "**" },
  { open: /__(?=\S)/y, kind: "strong", close: "__", word: true },
  { open: /\*(?=[^\s*])/y, kind: "em", close: "*" },
  { open: /_(?=[^\s_])/y, kind: "em", close: "_", word: true },
];

/** Parts of a line: texts, and `{kind: code | strong | em | break}`. */
export function inline(text, depth = 0) {
  const parts = [];
  let plain = "";
  const push = (part) => {
    if (plain) parts.push(plain);
    plain = "";
    parts.push(part);
  };
  for (let i = 0; i < text.length;) {
    if (text[i] === "\\" && /[\\`*_#>[\]()~-]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (text[i] === "\n") {
      push({ kind: "break" });
      i += 1;
    } else {
      const found = "*_`".includes(text[i]) && depth < DEEPEST ? marked(text, i, depth) : null;
      if (found) {
        push(found.part);
        i = found.end;
      } else {
        plain += text[i];
        i += 1;
      }
    }
  }
  if (plain) parts.push(plain);
  return parts;
}

function marked(text, start, depth) {
  for (const { open, kind, close, word } of MARKS) {
    open.lastIndex = start;
    const match = open.exec(text);
    if (!match) continue;
    const from = start + match[0].length;
    if (kind === "code") {
      const end = text.indexOf(match[0], from);
      return end < 0 ? null : { part: { kind, text: text.slice(from, end) }, end: end + match[0].length };
    }
    if (word && /\w/.test(text[start - 1] ?? "")) continue;
    let end = text.indexOf(close, from + 1);
    while (end > 0 && (/\s/.test(text[end - 1]) || (close === "*" && (text[end + 1] === "*" || text[end - 1] === "*")) || (word && /\w/.test(text[end + close.length] ?? "")))) {
      end = text.indexOf(close, end + close.length);
    }
    if (end > 0 && !text.slice(from, end).includes("\n\n")) {
      return { part: { kind, children: inline(text.slice(from, end), depth + 1) }, end: end + close.length };
    }
  }
  return null;
}

/** Elements of a tree, in a fragment. */
export function render(blocks) {
  const fragment = document.createDocumentFragment();
  for (const block of blocks) fragment.append(element(block));
  return fragment;
}

function element(block) {
  if (typeof block === "string") return document.createTextNode(block);
  const make = (tag, children = []) => {
    const node = document.createElement(tag);
    for (const child of children) node.append(element(child));
    return node;
  };
  switch (block.kind) {
    case "code": {
      const code = make("code");
      code.textContent = block.text;
      if (block.language === undefined) return code;
      const pre = make("pre");
      pre.dir = "ltr";
      pre.tabIndex = 0; // it may be wider than the screen, and is scrolled by keys
      pre.append(code);
      return pre;
    }
    case "list": {
      const list = make(block.ordered ? "ol" : "ul");
      if (block.ordered && block.start !== 1) list.start = block.start;
      for (const item of block.items) {
        const tight = item.length > 0 && item[0].kind === "paragraph";
        const li = make("li", tight ? item[0].children : []);
        li.append(render(tight ? item.slice(1) : item));
        li.dir = "auto";
        list.append(li);
      }
      return list;
    }
    case "heading": {
      const node = make("p", [{ kind: "strong", children: block.children }]);
      node.className = "heading";
      node.dir = "auto";
      return node;
    }
    case "paragraph": {
      const node = make("p", block.children);
      node.dir = "auto";
      return node;
    }
    case "quote": return make("blockquote", block.children);
    case "rule": return make("hr");
    case "break": return make("br");
    default: return make(block.kind, block.children); // strong, em
  }
}
