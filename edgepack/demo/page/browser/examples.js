// Rows of a person's examples → token ids, and which of them are learnt: only answers are, plain texts as a
// whole. As edgepack/finetune/examples.py does it.

import { Problem } from "./problem.js";

const IGNORED = -100;
const PAIRS = [["prompt", "response"], ["prompt", "completion"], ["instruction", "output"]];
const HINT = "a row has messages, a prompt and a completion, or a text";

/** {examples: [{ids, labels, answers}], skipped: [texts]}. None has more than `length` tokens. */
export function readExamples(rows, text, length, skip = false) {
  if (!Array.isArray(rows)) throw new Problem("examples: should be a list of rows", HINT);
  const [examples, skipped] = [[], []];
  rows.forEach((row, index) => {
    try {
      examples.push(...examplesOf(row, text, length));
    } catch (error) {
      const message = `example ${index + 1}: ${error.message}`;
      if (!(error instanceof Problem)) throw error;
      if (!skip) throw new Problem(message, error.hint);
      skipped.push(message);
    }
  });
  if (!examples.length) throw new Problem("there is nothing to learn", HINT);
  return { examples, skipped };
}

function examplesOf(row, text, length) {
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Problem("is no row", HINT);
  if ("text" in row) return pieces(text, string(row.text, "text"), length);
  return segmentsOf(messagesOf(row), text).map((segments) => example(segments, text, length));
}

function string(value, key) {
  if (typeof value !== "string") throw new Problem(`its ${key} is no text`, HINT);
  return value;
}

function messagesOf(row) {
  if (Array.isArray(row.messages)) {
    if (!row.messages.length) throw new Problem("it has no messages", HINT);
    return row.messages.map((message) => ({
      role: string(message?.role, "role"), content: string(message?.content, "content"),
    }));
  }
  const pair = PAIRS.find((keys) => keys.every((key) => key in row));
  if (!pair) throw new Problem("it has none of the keys of a row", HINT);
  const more = pair[0] === "instruction" && row.input ? `\n\n${string(row.input, "input")}` : "";
  return [
    { role: "user", content: string(row[pair[0]], pair[0]) + more },
    { role: "assistant", content: string(row[pair[1]], pair[1]) },
  ];
}

/** Lists of [text, whether it is learnt]: one list, but for answers that the template shows differently
 * once another turn follows. */
function segmentsOf(messages, text) {
  const answers = messages.flatMap(({ role }, index) => (role === "assistant" ? [index] : []));
  if (!answers.length) throw new Problem("it has no answer of the assistant's", HINT);
  if (!answers.every((index) => messages[index].content.trim())) throw new Problem("an answer is empty", HINT);
  if (!text.hasTemplate) return [plainSegments(messages, text)];
  const full = text.render(messages);
  const [joined, apart] = [[], []];
  let at = 0;
  for (const index of answers) {
    const prompt = text.render(messages.slice(0, index), true);
    const upto = text.render(messages.slice(0, index + 1)).trimEnd();
    if (!upto.startsWith(prompt) || upto.length === prompt.length) {
      throw new Problem("the chat template leaves nothing of the answer");
    }
    const answer = [upto.slice(prompt.length), true];
    if (full.startsWith(upto) && prompt.length >= at) {
      joined.push([full.slice(at, prompt.length), false], answer);
      at = upto.length;
    } else {
      apart.push([[prompt, false], answer]);
    }
  }
  return [...(joined.length ? [joined] : []), ...apart];
}

function plainSegments(messages, text) {
  return messages.map(({ role, content }, index) =>
    [text.disarmed(content) + (index + 1 < messages.length ? "\n\n" : ""), role === "assistant"]);
}

function example(segments, text, length) {
  let [ids, learnt] = [[], []];
  for (const [part, isAnswer] of segments) {
    const own = text.encode(part);
    ids.push(...own);
    learnt.push(...own.map(() => isAnswer));
  }
  const begun = text.begun(ids);
  learnt = begun.length > ids.length ? [...begun.slice(ids.length).map(() => false), ...learnt] : learnt.slice(ids.length - begun.length);
  ids = begun;
  if (!text.hasTemplate) {
    ids = [...ids, ...text.end.slice(0, 1)];
    learnt = [...learnt, ...text.end.slice(0, 1).map(() => true)];
  }
  if (ids.length > length) {
    throw new Problem(`it has ${ids.length} tokens, more than the ${length} that this page learns at once`, "shorten it");
  }
  const labels = ids.map((id, place) => (learnt[place] ? id : IGNORED));
  return predicted(ids, [...labels.slice(1), IGNORED]);
}

function pieces(text, content, length) {
  const ids = [...text.bos.slice(0, 1), ...text.encode(text.disarmed(content)), ...text.end.slice(0, 1)];
  if (ids.length < 2) throw new Problem("its text is empty", HINT);
  const found = [];
  for (let at = 0; at < ids.length - 1; at += length) {
    const piece = ids.slice(at, at + length + 1);
    found.push(predicted(piece.slice(0, -1), piece.slice(1)));
  }
  return found;
}

function predicted(ids, labels) {
  return { ids, labels, answers: labels.filter((label) => label !== IGNORED).length };
}
