// Notes that a person teaches: pairs, free text, pasted lists, .jsonl files → rows as
// `docs/finetuning.md` has them. Nothing here touches the page.

/** `{prompt, completion}` and `{text}` are rows of ours; the other spellings are read, too. */
export const MOST_BYTES = 3_500_000; // a request has at most 4 MB

/** Rows of a pasted text, or of a file: JSON lines, a JSON list, pairs, or one free text a paragraph.
 *  `{rows, problems}`; a problem is `{line, key}`, a key of `texts.js`. */
export function parseNotes(text) {
  const trimmed = text.replace(/^\uFEFF/, "").trim();
  if (!trimmed) return { rows: [], problems: [] };
  if (trimmed.startsWith("[")) {
    try {
      const list = JSON.parse(trimmed);
      if (Array.isArray(list)) return collect(list.map((value, i) => [value, i + 1]));
    } catch { /* then it is a text that begins with a bracket */ }
  }
  if (trimmed.startsWith("{")) return parseLines(trimmed);
  const tabbed = trimmed.split("\n").filter((line) => line.trim());
  if (tabbed.every((line) => line.split("\t").length === 2)) {
    return collect(tabbed.map((line, i) => {
      const [prompt, completion] = line.split("\t");
      return [{ prompt: prompt.trim(), completion: completion.trim() }, i + 1];
    }));
  }
  const pairs = parsePairs(trimmed);
  if (pairs.length) return { rows: pairs, problems: [] };
  return { rows: trimmed.split(/\n\s*\n/).map((part) => ({ text: part.trim() })), problems: [] };
}

function parseLines(text) {
  const values = [];
  const problems = [];
  text.split("\n").forEach((line, i) => {
    if (!line.trim()) return;
    try {
      values.push([JSON.parse(line), i + 1]);
    } catch {
      problems.push({ line: i + 1, key: "notes.notJson" });
    }
  });
  const found = collect(values);
  return { rows: found.rows, problems: [...problems, ...found.problems].sort((a, b) => a.line - b.line) };
}

function collect(values) {
  const rows = [];
  const problems = [];
  for (const [value, line] of values) {
    const row = toRow(value);
    if (row) rows.push(row);
    else problems.push({ line, key: "notes.notRow" });
  }
  return { rows, problems };
}

/** A row of one of the spellings, as ours, or null. */
export function toRow(value) {
  if (value === null || typeof value !== "object") return null;
  const text = (key) => (typeof value[key] === "string" && value[key].trim() ? value[key] : null);
  if (Array.isArray(value.messages)) {
    const whole = value.messages.every((m) => m && typeof m.role === "string" && typeof m.content === "string");
    return whole && value.messages.some((m) => m.role === "assistant") ? { messages: value.messages } : null;
  }
  const prompt = text("prompt") ?? (text("input") ? `${text("instruction")}\n\n${text("input")}` : text("instruction"));
  const completion = text("completion") ?? text("response") ?? text("output");
  if (prompt && completion) return { prompt, completion };
  return text("text") ? { text: value.text } : null;
}

const ASK = /^\s*(?:q|question|f|frage|ask|user)\s*[:：]\s*(.*)$/i;
const ANSWER = /^\s*(?:a|answer|antwort|assistant)\s*[:：]\s*(.*)$/i;
const ARROW = /^(.+?)\s*(?:=>|->|→|⇒)\s*(.+)$/;

/** `Q: … / A: …`, or `question => answer` on every line. */
function parsePairs(text) {
  const lines = text.split("\n");
  const filled = lines.filter((line) => line.trim());
  if (filled.every((line) => ARROW.test(line))) {
    return filled.map((line) => {
      const [, prompt, completion] = ARROW.exec(line);
      return { prompt: prompt.trim(), completion: completion.trim() };
    });
  }
  const rows = [];
  let row = null;
  let part = null;
  for (const line of lines) {
    const question = ASK.exec(line);
    const answer = question ? null : ANSWER.exec(line);
    if (question) {
      row = { prompt: question[1], completion: "" };
      rows.push(row);
      part = "prompt";
    } else if (answer && row) {
      row.completion = answer[1];
      part = "completion";
    } else if (row) row[part] += `\n${line}`;
    else if (line.trim()) return [];
  }
  const whole = rows.map(({ prompt, completion }) => ({ prompt: prompt.trim(), completion: completion.trim() }));
  return whole.every(({ prompt, completion }) => prompt && completion) ? whole : [];
}

/** Rows that can be taught, of the form's: those that are empty are left out. */
export function usableRows(rows) {
  return rows.flatMap((row) => toRow(row) ?? []);
}

/** Rows that a person began and did not finish: places in the list. */
export function halfRows(rows) {
  return rows.flatMap((row, i) => ("prompt" in row && Boolean(row.prompt.trim()) !== Boolean(row.completion.trim()) ? [i] : []));
}

/** Bytes that the rows take in a request. */
export function bytesOf(rows) {
  return new TextEncoder().encode(JSON.stringify(rows)).length;
}

/** A name for an adapter, from what a person typed; the same rule as `edgepack.core.adapters.NAME`. */
export function adapterName(text) {
  const plain = text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").replace(/[^A-Za-z0-9_.-]+/g, "-");
  return plain.replace(/^[.-]+/, "").slice(0, 64).replace(/[.]+$/, "");
}
