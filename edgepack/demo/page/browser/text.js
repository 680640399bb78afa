// Messages → the text that a model was trained on, and its tokens. Chat and training both use this, so that
// training sees what a chat sends.

import { Problem } from "./problem.js";

const SPLIT = "\u200b"; // zero-width space

/** What a model's text needs: `template` or null, `names` (bos_token, …), `bos` and `end` (ids, of which
 * there may be none), and `tokenizer`, or null where only the runtime has one. `Template` is
 * @huggingface/jinja's. */
export class Text {
  constructor({ template, names, bos = [], end = [], control = [] }, tokenizer, Template) {
    Object.assign(this, { names, bos, end, tokenizer });
    this.hasTemplate = Boolean(template);
    this.template = template ? compiled(template, Template) : null;
    const special = [...control].filter((text) => text.length > 1);
    this.control = special.length ? new RegExp(special.map(escaped).join("|"), "g") : null;
  }

  /** The text of messages. Control tokens that a person typed are broken by a character without width. */
  render(messages, start = false) {
    const plain = messages.map(({ role, content }) => ({ role, content: this.disarmed(content) }));
    if (!this.template) return plain.map(({ content }) => content).join("\n\n") + (start ? "\n\n" : "");
    try {
      return this.template.render({
        messages: plain, tools: null, documents: null, add_generation_prompt: start, ...this.names,
      });
    } catch (error) {
      throw new Problem(`the model's chat template refuses the messages: ${String(error.message).slice(0, 150)}`);
    }
  }

  disarmed(content) {
    if (!this.control) return content;
    return content.replace(this.control, (found) => found[0] + SPLIT + found.slice(1));
  }

  encode(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** Tokens of a prompt, with the token that every text begins with. */
  prompt(messages) {
    return this.begun(this.encode(this.render(messages, true)));
  }

  /** The text of a prompt for a runtime that tokenizes it, and that puts the first token there itself
   * (`adds`). */
  unbegun(messages, adds) {
    const text = this.render(messages, true);
    const bos = this.names.bos_token;
    return adds && bos && text.startsWith(bos) ? text.slice(bos.length) : text;
  }

  begun(ids) {
    if (!this.bos.length) return ids;
    if (!ids.includes(this.bos[0])) return [...this.bos, ...ids];
    const from = ids.findIndex((id, at) => id !== this.bos[0] || ids[at + 1] !== this.bos[0]);
    return ids.slice(from);
  }
}

function compiled(template, Template) {
  try {
    return new Template(template);
  } catch (error) {
    throw new Problem(`the model's chat template cannot be read: ${String(error.message).slice(0, 150)}`);
  }
}

function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** The same of a GGUF file's header. Its tokenizer is the runtime's own. */
export function textOfGguf({ metadata }, Template) {
  const tokens = metadata.get("tokenizer.ggml.tokens") ?? [];
  const kinds = metadata.get("tokenizer.ggml.token_type") ?? [];
  const names = {};
  for (const [name, key] of [["bos_token", "bos"], ["eos_token", "eos"], ["unk_token", "unknown"], ["pad_token", "padding"]]) {
    const text = tokens[metadata.get(`tokenizer.ggml.${key}_token_id`)];
    if (text !== undefined) names[name] = text;
  }
  const CONTROL = 3;
  const control = tokens.filter((_, id) => kinds[id] === CONTROL);
  return new Text({ template: metadata.get("tokenizer.chat_template") ?? null, names, control }, null, Template);
}
