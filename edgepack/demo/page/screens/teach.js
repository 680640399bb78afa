// Teach: write notes, see what learning them takes, watch it, compare.

import { announce, button, confirmed, el, icon, put, sheet } from "../dom.js";
import { bytes, duration, number } from "../format.js";
import { adapterName, bytesOf, halfRows, MOST_BYTES, usableRows } from "../notes.js";
import { t } from "../texts.js";
import { Compare } from "./compare.js";
import { sentence } from "./models.js";
import { NotesForm } from "./notes-form.js";
import { optionsFor, OptionsForm } from "./options-form.js";
import { Training } from "./training.js";

export class TeachScreen {
  constructor(app, shell) {
    this.app = app;
    this.shell = shell;
    const can = app.hello.can.tune;
    this.name = el("input", { type: "text", id: "teach-name", maxlength: 64, autocomplete: "off", spellcheck: "false", dir: "ltr",
      placeholder: t("teach.namePlaceholder"), onblur: () => { this.name.value = adapterName(this.name.value); this.keep(); } });
    this.rows = new NotesForm(() => this.keep(), shell);
    this.options = new OptionsForm(() => this.keep());
    this.next = button({ text: t("teach.next"), glyph: "teach", kind: "primary", onclick: () => this.plan() });
    this.problem = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.form = el("div", { class: "form" },
      this.rows.node,
      el("article", { class: "card" },
        el("label", { class: "field", for: "teach-name" }, el("span", { text: t("teach.name") }), this.name, el("small", { text: t("teach.nameAbout") })),
        this.options.node, this.problem, el("div", { class: "row" }, this.next)));
    this.jobs = el("div", { class: "jobs" });
    this.live = el("div", { class: "slot" });
    this.comparing = el("div", { class: "slot" });
    this.none = el("div", { class: "empty" }, icon("teach"), el("h2", { text: t("chat.noModel") }), el("p", { class: "quiet", text: t("models.firstText") }),
      button({ text: t("models.import"), glyph: "add", kind: "primary", onclick: () => shell.go("models") }));
    this.node = el("section", { class: "screen teach" },
      el("header", { class: "head" }, el("div", { class: "head-text" }, el("h1", { tabindex: "-1", text: t("teach.title") }),
        el("p", { class: "quiet", text: t("teach.about") }))),
      can === true ? null : el("p", { class: "notice", text: String(can || t("teach.cannot")) }),
      this.none, this.jobs, this.live, this.form, this.comparing);
    this.able = can === true;
    app.on("models", () => this.showModel());
    app.on("model", () => this.showModel());
    app.on("host", ({ connected }) => { if (connected) this.showJobs(); });
    this.showModel();
    this.restore();
    this.showJobs();
  }

  showModel() {
    const { model } = this.app;
    this.none.hidden = Boolean(model);
    this.form.hidden = !model || !this.able || Boolean(this.training);
    const names = this.app.usable();
    if (!model || names.length === 0) {
      put(this.comparing);
      this.compare = null;
    } else if (this.compare?.key !== `${model.id} ${names}`) {
      this.compare = new Compare(this.app, this.compare?.name);
      this.compare.key = `${model.id} ${names}`;
      put(this.comparing, this.compare.node);
    }
  }

  async restore() {
    const draft = await this.app.drafts.get("teach").catch(() => null);
    if (draft?.version === 1) {
      this.name.value = draft.name;
      this.options.set(draft.options);
      this.rows.set(draft.rows);
    } else this.rows.set([]);
    this.restored = true;
  }

  /** Keep what was written, a little after the last change. */
  keep() {
    if (!this.restored) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const draft = { id: "teach", version: 1, name: this.name.value, options: this.options.values(), rows: this.rows.rows };
      this.app.drafts.put(draft).catch(() => this.app.tell("full"));
    }, 400);
  }

  /** Trainings that were begun: one that runs is shown, others can go on. */
  async showJobs() {
    if (!this.able) return;
    let jobs = [];
    try {
      ({ jobs } = await this.app.client.ask("app", { do: "jobs" }).done);
    } catch { /* a host that cannot say has none */ }
    const running = jobs.find((job) => job.running);
    if (running && !this.training) this.watch(running.request);
    put(this.jobs, jobs.filter((job) => !job.running && job.adapter !== this.training?.request.adapter).map((job) => el("article", { class: "card" },
      el("div", { class: "card-head" }, icon("warn"), el("div", { class: "grow" }, el("h2", { text: t("teach.unfinished") }),
        el("p", { dir: "auto", text: t("teach.unfinishedText", { name: job.adapter }) }))),
      el("div", { class: "row" },
        button({ text: t("teach.goOn"), kind: "primary", disabled: Boolean(this.training), onclick: () => this.watch(job.request) }),
        button({ text: t("teach.forget"), kind: "quiet", onclick: () => this.forget(job) })))));
  }

  async forget(job) {
    if (!await confirmed(t("teach.forget"), t("teach.forgetText", { name: job.adapter }), t("remove"), t("cancel"))) return;
    try {
      await this.app.client.ask("app", { do: "forget", model: job.model, adapter: job.adapter }).done;
    } catch (error) {
      this.complain(sentence(error));
    }
    this.showJobs();
  }

  complain(text) {
    this.problem.hidden = !text;
    this.problem.textContent = text ?? "";
  }

  /** The request for what is written here, or null, with a word about what is missing. */
  request() {
    this.complain(null);
    this.name.value = adapterName(this.name.value);
    const examples = usableRows(this.rows.rows);
    const half = halfRows(this.rows.rows);
    const known = this.app.model.adapters.map((adapter) => adapter.name);
    if (half.length) this.complain(t("teach.half", { number: half[0] + 1 }));
    else if (!examples.length) this.complain(t("teach.noNotes"));
    else if (bytesOf(examples) > MOST_BYTES) this.complain(t("teach.tooMuch", { size: bytes(bytesOf(examples)), most: bytes(MOST_BYTES) }));
    else if (!this.name.value) {
      this.complain(t("teach.noName"));
      this.name.focus();
    } else if (known.includes(this.name.value)) this.complain(t("teach.taken", { name: this.name.value }));
    else return { model: this.app.model.id, adapter: this.name.value, mode: this.options.mode, examples,
      options: optionsFor(this.options.values(), examples.length), threads: this.app.settings.sampling.threads };
    return null;
  }

  /** Ask what the training will take; the person decides. */
  async plan() {
    const request = this.request();
    if (!request) return;
    this.next.disabled = true;
    this.next.classList.add("busy");
    let plan = null;
    try {
      plan = await this.app.client.ask("tune", { do: "plan", ...request }).done;
    } catch (error) {
      this.complain(sentence(error));
    }
    this.next.disabled = false;
    this.next.classList.remove("busy");
    if (plan && await this.agreed(request, plan)) this.watch(request);
  }

  agreed(request, plan) {
    const rate = this.app.settings.trained || this.app.settings.read / 4;
    const seconds = rate ? (plan.steps * plan.tokens) / Math.max(1, plan.examples) * (request.options.batch_size ?? 4) / rate : NaN;
    const facts = [
      [t("plan.examples"), number(plan.examples)],
      [t("plan.steps"), number(plan.steps)],
      [t("plan.time"), Number.isFinite(seconds) ? t("plan.about", { time: duration(seconds) }) : t("plan.unknown")],
      [t("plan.memory"), bytes(plan.memory)],
      [t("plan.size"), t("plan.parameters", { count: number(plan.parameters) })],
    ];
    return sheet(t("plan.title", { name: request.adapter }), (close) => [
      el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
      plan.skipped?.length ? el("details", { class: "notice" }, el("summary", { text: t("plan.skipped", { count: plan.skipped.length }) }),
        el("ul", { class: "plain" }, plan.skipped.slice(0, 20).map((text) => el("li", { text, dir: "auto" })))) : null,
      plan.resumed_at ? el("p", { text: t("plan.resumed", { step: plan.resumed_at }) }) : null,
      el("p", { class: "quiet", text: t(`plan.hint.${this.app.hello.host}`) }),
      el("div", { class: "row end" }, button({ text: t("cancel"), onclick: () => close(false) }),
        button({ text: t("plan.start"), glyph: "teach", kind: "primary", onclick: () => close(true) })),
    ], { closeLabel: t("close") });
  }

  /** Begin a training, go on with it, or watch one that runs. */
  watch({ id, to, do: what, ...request }) {
    this.training = new Training(this.app, request, {
      ended: async (adapter) => {
        await this.app.refresh();
        const taught = this.app.models.find((model) => model.id === request.model);
        if (taught) this.app.switchNotes(taught, adapter, true);
        if (this.name.value === adapter) this.name.value = "";
        this.keep();
        announce(t("teach.ready", { name: adapter }), true);
        const first = request.examples?.find((row) => row.prompt)?.prompt ?? "";
        this.close();
        if (!taught || taught !== this.app.model) return; // another one was chosen meanwhile
        this.compare?.choose(adapter, first);
        this.compare?.node.scrollIntoView({ block: "start" });
      },
      closed: () => this.close(),
    });
    put(this.live, this.training.node);
    this.form.hidden = true;
    put(this.jobs);
    this.training.start();
  }

  close() {
    this.training = null;
    put(this.live);
    this.showModel();
    this.showJobs();
  }
}
