// Bench: how fast the model is here, as `edgepack bench` measures it.

import { bars } from "../chart.js";
import { button, el, icon, put } from "../dom.js";
import { bytes, duration, number, speed } from "../format.js";
import { readSetting, writeSetting } from "../storage.js";
import { t } from "../texts.js";
import { copyText } from "./message.js";
import { sentence } from "./models.js";

const FIELDS = [
  { key: "prompt", value: 256, min: 1, max: 4096 },
  { key: "decode", value: 64, min: 1, max: 1024 },
  { key: "threads", value: 0, min: 0, max: 64 },
  { key: "rounds", value: 3, min: 1, max: 50 },
];
const VERSION = 1;

export class BenchScreen {
  constructor(app, shell) {
    this.app = app;
    this.shell = shell;
    this.inputs = {};
    const can = app.hello.can.bench;
    const asked = { ...Object.fromEntries(FIELDS.map(({ key, value }) => [key, value])), ...readSetting("bench", VERSION, {}).asked };
    this.form = el("div", { class: "fields" }, FIELDS.map(({ key, min, max }) => {
      this.inputs[key] = el("input", { type: "number", id: `bench-${key}`, min, max, step: 1, value: String(asked[key]), inputmode: "numeric" });
      return el("label", { class: "field", for: `bench-${key}` }, el("span", { text: t(`bench.${key}`) }), this.inputs[key],
        el("small", { text: t(`bench.${key}.about`) }));
    }));
    this.notes = el("div", { class: "chips", role: "group", "aria-label": t("chat.notes") });
    this.chosen = new Set();
    this.start = button({ text: t("bench.start"), glyph: "bench", kind: "primary", onclick: () => this.run() });
    this.halt = button({ text: t("stop"), glyph: "stop", hidden: true, onclick: () => this.running?.cancel() });
    this.live = el("div", { class: "live", hidden: true });
    this.result = el("div", { class: "result" });
    this.setup = el("article", { class: "card" }, this.form, this.notes, el("div", { class: "row" }, this.start, this.halt), this.live);
    this.node = el("section", { class: "screen bench" },
      el("header", { class: "head" }, el("div", { class: "head-text" }, el("h1", { tabindex: "-1", text: t("bench.title") }),
        el("p", { class: "quiet", text: t("bench.about") }))),
      can === true ? null : el("p", { class: "notice", text: String(can || t("bench.cannot")) }),
      this.setup, this.result);
    this.setup.hidden = can !== true;
    app.on("models", () => this.showNotes());
    app.on("model", () => this.showNotes());
    this.showNotes();
    const last = readSetting("bench", VERSION, {}).bench;
    if (last) this.showResult(last);
    else this.showNothing();
  }

  showNotes() {
    this.start.disabled = !this.app.model;
    const names = this.app.usable();
    this.chosen = new Set([...this.chosen].filter((name) => names.includes(name)));
    this.notes.hidden = names.length === 0;
    put(this.notes, names.map((name) => {
      const chip = el("button", { type: "button", class: "chip", role: "switch", "aria-checked": String(this.chosen.has(name)), onclick: () => {
        if (!this.chosen.delete(name)) this.chosen.add(name);
        chip.setAttribute("aria-checked", String(this.chosen.has(name)));
      } }, el("span", { class: "knob" }), el("bdi", { text: name }));
      return chip;
    }));
  }

  showNothing() {
    put(this.result, el("div", { class: "empty small" }, icon("bench"),
      el("p", { class: "quiet", text: t(this.app.model ? "bench.nothing" : "chat.noModel") })));
  }

  numbers() {
    return Object.fromEntries(FIELDS.map(({ key, value, min, max }) => {
      const given = Math.round(Number(this.inputs[key].value));
      const right = Number.isFinite(given) && this.inputs[key].value !== "" ? Math.min(max, Math.max(min, given)) : value;
      this.inputs[key].value = String(right);
      return [key, right];
    }));
  }

  async run() {
    const asked = this.numbers();
    const cases = [];
    this.start.hidden = true;
    this.halt.hidden = false;
    this.halt.focus();
    this.live.hidden = false;
    const draw = () => put(this.live,
      el("progress", { max: asked.rounds * 2, value: cases.length || null, "aria-label": t("bench.running") }),
      el("p", { class: "quiet", text: cases.length
        ? t("bench.case", { round: cases.at(-1).round + 1, rounds: asked.rounds, kind: t(`bench.${cases.at(-1).kind}`), speed: speed(cases.at(-1).tokens / cases.at(-1).seconds) })
        : t("bench.begins") }));
    draw();
    this.running = this.app.client.ask("bench", { do: "bench", model: this.app.model.id, adapters: [...this.chosen], ...asked }, (event) => {
      if (event.event !== "case") return;
      cases.push(event);
      draw();
    });
    try {
      const { bench } = await this.running.done;
      if (bench) {
        if (!writeSetting("bench", VERSION, { asked, bench })) this.app.tell("full");
        this.showResult(bench);
      }
    } catch (error) {
      this.shell.banner("bench", sentence(error));
    }
    this.running = null;
    this.live.hidden = true;
    this.start.hidden = false;
    this.halt.hidden = true;
  }

  showResult(bench) {
    const [model] = bench.models;
    const rows = model.timings.map((timing) => {
      const seconds = middle(timing.seconds);
      const value = (timing.case.tokens * timing.case.batch) / seconds;
      return { name: t(`bench.row.${timing.case.kind}`, { tokens: timing.case.tokens }), value, seconds, times: timing.seconds, text: speed(value) };
    });
    const loading = model.loading[0];
    put(this.result, el("article", { class: "card" },
      el("div", { class: "card-head" }, el("div", { class: "grow" }, el("h2", { dir: "auto", text: model.name }),
        el("p", { class: "quiet", text: t("bench.of", { date: new Date(bench.date).toLocaleString(), rounds: bench.rounds }) }))),
      bars(rows),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("bench.table") }, el("table", {},
        el("thead", {}, el("tr", {}, ["bench.what", "bench.median", "bench.range"].map((key) => el("th", { scope: "col", text: t(key) })))),
        el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row", text: row.name }),
          el("td", { text: duration(row.seconds) }),
          el("td", { text: `${duration(Math.min(...row.times))} – ${duration(Math.max(...row.times))}` })))))),
      el("dl", { class: "facts" },
        el("dt", { text: t("bench.loading") }), el("dd", { text: duration(middle(loading.seconds)) }),
        el("dt", { text: t("bench.peak") }), el("dd", { text: bytes(Math.max(...loading.peak)) }),
        el("dt", { text: t("bench.threads") }), el("dd", { text: number(loading.threads) }),
        el("dt", { text: t("bench.runtime") }), el("dd", { text: model.runtime, dir: "ltr" })),
      bench.remarks.map((remark) => el("p", { class: "notice", text: remark, dir: "auto" })),
      el("div", { class: "row" },
        button({ text: t("bench.copy"), glyph: "copy", onclick: () => copyText(JSON.stringify(bench, null, 1)) }),
        this.app.hello.host === "android" ? null : button({ text: t("bench.save"), glyph: "share", kind: "quiet", onclick: () => save(bench) }))));
  }
}

function middle(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function save(bench) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(bench, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: "bench.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
