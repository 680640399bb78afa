// One message: its text, what can be done with it, and the quiet line below an answer.

import { announce, button, el, icon, put } from "../dom.js";
import { bytes, duration, number, speed } from "../format.js";
import { parse, render } from "../markdown.js";
import { t } from "../texts.js";

export class MessageView {
  constructor(message, acts) {
    this.message = message;
    this.acts = acts;
    this.mine = message.role === "user";
    this.text = el("div", { class: "text", dir: "auto" });
    this.under = el("div", { class: "under" });
    this.node = el("article", { class: `message ${this.mine ? "mine" : "theirs"}`,
      "aria-label": t(this.mine ? "message.you" : "message.model") }, this.text, this.under);
    this.changed();
  }

  writing() {
    this.changed();
  }

  /** Show what the message has become. Drawn once a frame at most, however fast the text comes. */
  changed() {
    if (this.pending) return;
    if (this.message.state !== "writing" || !this.drawn) {
      this.draw();
      return;
    }
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  draw() {
    const { message } = this;
    this.drawn = true;
    if (this.mine) this.text.textContent = message.content;
    else if (message.content) put(this.text, render(parse(message.content)));
    else if (message.state === "writing") {
      put(this.text, el("span", { class: "dots", role: "img", "aria-label": t("message.waiting") }, el("i"), el("i"), el("i")));
    } else put(this.text, el("p", { class: "quiet", text: t("message.empty") }));
    this.node.classList.toggle("writing", message.state === "writing");
    if (message.state !== "writing") put(this.under, this.notice(), this.stats(), this.tools());
  }

  notice() {
    const { state, error, dropped, stats } = this.message;
    const found = [];
    if (dropped) found.push(t("message.dropped", { count: dropped }));
    if (state === "interrupted") found.push(error ? t("message.failed", { error }) : t("message.interrupted"));
    if (state === "stopped") found.push(t("message.stopped"));
    if (state === "done" && stats?.reason === "length") found.push(t("message.length"));
    if (state === "done" && stats?.reason === "context") found.push(t("message.context"));
    return found.map((text) => el("p", { class: state === "interrupted" ? "notice bad" : "notice", text, dir: "auto" }));
  }

  stats() {
    const { stats, notes } = this.message;
    if (!stats?.tokens) return null;
    const parts = [
      speed(stats.tokens_per_second),
      stats.first_token_seconds ? t("message.first", { time: duration(stats.first_token_seconds) }) : null,
      stats.peak ? t("message.memory", { size: bytes(stats.peak) }) : null,
      stats.cached_tokens ? t("message.cached", { cached: number(stats.cached_tokens), all: number(stats.prompt_tokens) }) : null,
    ].filter(Boolean);
    return el("p", { class: "stats", dir: "auto" }, parts.join(" · "),
      notes?.length ? el("span", { class: "with" }, icon("teach"), el("bdi", { text: notes.join(", ") })) : null);
  }

  tools() {
    const copy = button({ label: t("copy"), glyph: "copy", kind: "quiet tool", onclick: () => copyText(this.message.content) });
    const edit = this.mine && this.acts.edit ? button({ label: t("message.edit"), glyph: "edit", kind: "quiet tool", onclick: () => this.edit() }) : null;
    const retry = this.mine || !this.acts.retry ? null
      : button({ label: t("message.retry"), glyph: "retry", kind: "quiet tool", onclick: () => this.acts.retry() });
    return el("div", { class: "tools" }, edit, retry, copy);
  }

  /** Let the person change what they said. */
  edit() {
    const area = el("textarea", { dir: "auto", rows: Math.min(8, this.message.content.split("\n").length + 1),
      "aria-label": t("message.edit"), value: this.message.content,
      onkeydown: (event) => {
        if (event.key === "Escape") this.draw();
        else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          save();
        }
      } });
    const save = () => { if (area.value.trim()) this.acts.edit(area.value.trim()); };
    put(this.text, el("div", { class: "editing" }, area));
    put(this.under, el("div", { class: "row end" }, button({ text: t("cancel"), onclick: () => this.draw() }),
      button({ text: t("chat.send"), kind: "primary", onclick: save })));
    area.focus();
  }
}

/** Put a text on the clipboard, and say so. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or no such interface: the old way
    const area = el("textarea", { value: text, class: "sr" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(t("copied"));
  const note = el("div", { class: "toast", text: t("copied"), "aria-hidden": "true" });
  document.body.append(note);
  setTimeout(() => note.remove(), 1600);
}

/** Reads an answer aloud sentence by sentence: screen readers cannot follow single tokens. */
export class Announcer {
  constructor() {
    this.rest = "";
  }

  add(text) {
    this.rest += text;
    const match = /^[\s\S]*[.!?。！？؟\n](?=\s|$)/.exec(this.rest);
    if (!match || match[0].length < 40) return;
    this.rest = this.rest.slice(match[0].length);
    announce(match[0].trim());
  }

  end() {
    if (this.rest.trim()) announce(this.rest.trim());
    this.rest = "";
  }
}
