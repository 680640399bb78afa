// The same question with notes off and on, side by side.

import { button, el, put } from "../dom.js";
import { t } from "../texts.js";
import { sentence } from "./models.js";
import { MessageView } from "./message.js";

export class Compare {
  constructor(app, name = null) {
    this.app = app;
    const names = app.usable();
    this.name = names.includes(name) ? name : (app.notesOn()[0] ?? names[0]);
    this.select = el("select", { id: "compare-notes", onchange: () => { this.name = this.select.value; } },
      names.map((one) => el("option", { value: one, selected: one === this.name, text: one })));
    this.input = el("input", { type: "text", id: "compare-question", dir: "auto", autocomplete: "off",
      onkeydown: (event) => { if (event.key === "Enter" && !event.isComposing) this.run(); } });
    this.go = button({ text: t("compare.ask"), glyph: "compare", kind: "primary", onclick: () => this.run() });
    this.halt = button({ text: t("stop"), glyph: "stop", hidden: true, onclick: () => this.stop() });
    this.sides = el("div", { class: "sides", hidden: true });
    this.node = el("article", { class: "card compare" },
      el("h2", { text: t("compare.title") }), el("p", { class: "quiet", text: t("compare.about") }),
      el("label", { class: "field", for: "compare-notes" }, el("span", { text: t("compare.notes") }), this.select),
      el("label", { class: "field", for: "compare-question" }, el("span", { text: t("compare.question") }), this.input),
      el("div", { class: "row" }, this.go, this.halt), this.sides);
  }

  /** Offer a question about notes that were just learnt, and ask it. */
  choose(name, question) {
    this.name = name;
    this.select.value = name;
    this.input.value = question;
    if (question) this.run();
  }

  async run() {
    const question = this.input.value.trim();
    if (!question || this.running) return;
    this.halted = false;
    this.go.hidden = true;
    this.halt.hidden = false;
    const { system } = this.app.settings;
    const messages = [...(system.trim() ? [{ role: "system", content: system }] : []), { role: "user", content: question }];
    const sides = [[], [this.name]].map((notes) => {
      const answer = { role: "assistant", content: "", state: "writing", notes };
      const view = new MessageView(answer, {});
      const title = el("h3", {}, notes.length ? el("bdi", { text: t("compare.on", { name: this.name }) }) : t("compare.off"));
      return { answer, view, notes, node: el("div", { class: `side ${notes.length ? "on" : ""}` }, title, view.text, view.under) };
    });
    this.sides.hidden = false;
    put(this.sides, sides.map((side) => side.node));
    for (const { answer, view, notes } of sides) {
      if (!this.halted) await this.answer(messages, answer, view, notes);
      else answer.state = "stopped";
      view.draw();
    }
    this.running = null;
    this.go.hidden = false;
    this.halt.hidden = true;
  }

  async answer(messages, answer, view, notes) {
    this.running = this.app.chat(messages, notes, (event) => {
      if (event.event !== "text") return;
      answer.content += event.text;
      view.changed();
    });
    try {
      const ended = await this.running.done;
      answer.state = ended.reason === "cancelled" ? "stopped" : "done";
      answer.stats = { ...ended, peak: ended.memory?.peak ?? null };
    } catch (error) {
      answer.state = "interrupted";
      answer.error = sentence(error);
    }
  }

  stop() {
    this.halted = true;
    this.running?.stop();
  }
}
