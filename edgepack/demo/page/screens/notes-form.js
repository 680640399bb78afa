// The list of notes: pairs and texts, written, pasted or from a file. Long lists are shown in part.

import { button, confirmed, el, put, sheet } from "../dom.js";
import { number } from "../format.js";
import { parseNotes } from "../notes.js";
import { t } from "../texts.js";

const SHOWN = 25;
const MOST_FILE = 64e6;

export class NotesForm {
  constructor(changed, shell) {
    this.changed = changed;
    this.shell = shell;
    this.rows = [];
    this.shown = SHOWN;
    this.list = el("ol", { class: "notes" });
    this.count = el("span", { class: "quiet" });
    this.more = button({ text: "", kind: "quiet", hidden: true, onclick: () => { this.shown += SHOWN; this.draw(); } });
    this.node = el("article", { class: "card" },
      el("div", { class: "card-head" }, el("h2", { class: "grow", text: t("notes.title") }), this.count),
      this.list, this.more,
      el("div", { class: "row" },
        button({ text: t("notes.add"), glyph: "add", onclick: () => this.add({ prompt: "", completion: "" }) }),
        button({ text: t("notes.addText"), glyph: "add", kind: "quiet", onclick: () => this.add({ text: "" }) }),
        button({ text: t("notes.many"), kind: "quiet", onclick: () => this.paste() }),
        this.clearAll = button({ text: t("notes.clear"), kind: "quiet end", onclick: () => this.clear() })));
  }

  set(rows) {
    this.rows = rows.length ? rows : [{ prompt: "", completion: "" }];
    this.shown = SHOWN;
    this.draw();
  }

  add(row) {
    this.rows.push(row);
    this.shown = Math.max(this.shown, this.rows.length);
    this.list.append(this.row(row));
    this.summary();
    this.list.lastElementChild.querySelector("textarea").focus();
    this.changed();
  }

  draw() {
    put(this.list, this.rows.slice(0, this.shown).map((row) => this.row(row)));
    this.summary();
  }

  summary() {
    this.count.textContent = t("notes.count", { count: this.rows.length });
    this.more.hidden = this.rows.length <= this.shown;
    this.more.querySelector("span").textContent = t("notes.more", { count: number(this.rows.length - this.shown) });
    this.clearAll.hidden = this.rows.length < 2;
  }

  row(row) {
    const li = el("li", { class: "note" });
    const area = (key, label) => {
      const node = el("textarea", { rows: key === "text" ? 3 : 1, dir: "auto", "aria-label": label, placeholder: label, value: shorten(row[key]),
        oninput: () => { row[key] = node.value; grow(node); this.changed(); } });
      if (row[key].length > LONG) node.readOnly = true;
      requestAnimationFrame(() => grow(node));
      return node;
    };
    const remove = button({ label: t("notes.remove"), glyph: "close", kind: "quiet", onclick: () => {
      this.rows.splice(this.rows.indexOf(row), 1);
      const next = li.nextElementSibling ?? li.previousElementSibling;
      if (this.rows.length < this.shown || this.rows.length === 0) li.remove();
      else this.draw();
      if (!this.rows.length) this.set([]);
      this.summary();
      this.changed();
      (next?.isConnected ? next : this.list.firstElementChild)?.querySelector("textarea")?.focus();
    } });
    const fields = "prompt" in row ? [area("prompt", t("notes.ask")), area("completion", t("notes.answer"))]
      : "text" in row ? [area("text", t("notes.text"))]
        : [el("p", { class: "quiet", dir: "auto", text: t("notes.conversation", { text: row.messages.map((m) => m.content).join(" / ").slice(0, 200) }) })];
    li.append(el("div", { class: "note-fields" }, fields), remove);
    return li;
  }

  /** Many at once, from the clipboard or a file. */
  async paste() {
    const text = await sheet(t("notes.many"), (close) => {
      const area = el("textarea", { rows: 9, dir: "auto", "aria-label": t("notes.many"), placeholder: t("notes.manyExample") });
      const problem = el("p", { class: "notice bad", hidden: true, role: "alert" });
      const file = el("input", { type: "file", accept: ".jsonl,.json,.txt,.tsv,text/plain,application/json", class: "sr", id: "notes-file",
        onchange: async () => {
          const [chosen] = file.files;
          problem.hidden = !chosen || chosen.size <= MOST_FILE;
          problem.textContent = t("notes.fileTooLarge");
          if (chosen && chosen.size <= MOST_FILE) close(await chosen.text());
        } });
      return [el("p", { class: "quiet", text: t("notes.manyAbout") }), area, problem,
        el("div", { class: "row end" }, file, el("label", { class: "button quiet", for: "notes-file", text: t("notes.file") }),
          button({ text: t("notes.take"), kind: "primary", onclick: () => close(area.value) }))];
    }, { closeLabel: t("close"), wide: true });
    if (text?.trim()) this.take(text);
  }

  take(text) {
    const { rows, problems } = parseNotes(text);
    const filled = this.rows.filter((row) => !("prompt" in row) || row.prompt || row.completion);
    if (rows.length) {
      this.set([...filled, ...rows]);
      this.changed();
    }
    if (problems.length) this.shell.banner("notes", t("notes.problems", { count: problems.length, line: problems[0].line, what: t(problems[0].key) }));
    else if (!rows.length) this.shell.banner("notes", t("notes.none"));
    else {
      this.shell.banner("notes", t("notes.taken", { count: rows.length }), { kind: "good" });
      setTimeout(() => this.shell.unbanner("notes"), 4000);
    }
  }

  async clear() {
    if (!await confirmed(t("notes.clear"), t("notes.clearText", { count: this.rows.length }), t("remove"), t("cancel"))) return;
    this.set([]);
    this.changed();
  }
}

const LONG = 20000; // letters that are shown of a note; one that is longer is kept, and cannot be edited here

function shorten(text) {
  return text.length > LONG ? `${text.slice(0, LONG)}…` : text;
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 240)}px`;
}
