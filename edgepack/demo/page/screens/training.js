// A training that runs: how far it is, what it takes, and why it waits.

import { announce, button, confirmed, el, icon, put } from "../dom.js";
import { lossCurve } from "../chart.js";
import { bytes, duration, number, percent, speed } from "../format.js";
import { readSetting, writeSetting } from "../storage.js";
import { t } from "../texts.js";
import { sentence } from "./models.js";

const VERSION = 1;
const WAITS = { heat: "training.hot", battery: "training.low" };

export class Training {
  constructor(app, request, acts) {
    this.app = app;
    this.request = request;
    this.acts = acts;
    this.state = "running"; // paused, stopping, failed
    this.last = null;
    this.losses = this.recall();
    this.status = el("p", { class: "quiet" });
    this.bar = el("progress", { max: 1, "aria-label": t("training.progress") });
    this.curve = el("div", { class: "curve-box" });
    this.facts = el("dl", { class: "facts" });
    this.warning = el("p", { class: "notice", hidden: true, role: "status" });
    this.halt = button({ text: t("stop"), glyph: "stop", onclick: () => this.stop() });
    this.again = button({ text: t("teach.goOn"), kind: "primary", hidden: true, onclick: () => this.start() });
    this.leave = button({ text: t("close"), kind: "quiet", hidden: true, onclick: () => this.acts.closed() });
    this.node = el("article", { class: "card training" },
      el("div", { class: "card-head" }, icon("teach"), el("div", { class: "grow" }, el("h2", { dir: "auto", text: t("training.title", { name: request.adapter }) }), this.status)),
      this.bar, this.curve, this.facts, this.warning, el("div", { class: "row" }, this.halt, this.again, this.leave));
  }

  /** Losses that were seen before the page was loaded again. */
  recall() {
    const kept = readSetting("curve", VERSION, null);
    return kept?.adapter === this.request.adapter && kept.model === this.request.model ? kept.losses : [];
  }

  remember() {
    const { model, adapter } = this.request;
    writeSetting("curve", VERSION, { model, adapter, losses: this.losses.slice(-2000) });
  }

  /** Begin or go on: the same request goes on from what was saved, or tells of what runs already. */
  async start() {
    this.show("running");
    const hear = (event) => this.hear(event);
    const running = this.app.client.ask("tune", { ...this.request, do: "train" }, hear);
    this.running = running;
    try {
      const ended = await running.done;
      if (ended.reason === "cancelled") {
        if (this.state === "stopping") this.acts.closed();
        else this.show("paused");
        return;
      }
      if (ended.tokens_per_second) this.app.set({ trained: ended.tokens_per_second });
      writeSetting("curve", VERSION, null);
      this.acts.ended(this.request.adapter);
    } catch (error) {
      this.show("failed", sentence(error));
      announce(sentence(error), true);
    }
  }

  hear(event) {
    if (event.event === "planned") {
      this.plan = event;
      this.losses = this.losses.slice(0, event.resumed_at ?? 0);
    } else if (event.event === "progress") {
      this.status.textContent = t("training.prepares", { share: percent(event.share) });
    } else if (event.event === "waiting") {
      this.warn(t(WAITS[event.reason] ?? "training.waits"));
    } else if (event.event === "step") {
      this.warn(null);
      this.last = event;
      this.losses[event.step - 1] = event.loss;
      for (let i = 0; i < event.step - 1; i += 1) this.losses[i] ??= event.loss;
      if (event.tokens_per_second) this.app.settings.trained = event.tokens_per_second;
      this.draw();
    } else if (event.event === "saved") this.remember();
  }

  draw() {
    const { last } = this;
    if (!last) return;
    this.bar.value = last.step / last.steps;
    this.status.textContent = t("training.status", { step: number(last.step), steps: number(last.steps), time: duration(last.seconds_left) });
    put(this.curve, lossCurve(this.losses, last.steps, t("training.curve", { first: number(this.losses[0], 2), last: number(last.loss, 2) })));
    const facts = [
      [t("training.loss"), `${number(this.losses[0], 2)} → ${number(last.loss, 2)}`],
      [t("training.speed"), speed(last.tokens_per_second)],
      [t("training.memory"), bytes(last.memory?.peak)],
      last.replay_loss === null || last.replay_loss === undefined ? null : [t("training.replay"), number(last.replay_loss, 3)],
    ].filter(Boolean);
    put(this.facts, facts.map(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]));
  }

  async stop() {
    if (!await confirmed(t("training.stopTitle"), t("training.stopText"), t("stop"), t("cancel"))) return;
    if (this.state !== "running") return;
    this.show("stopping");
    this.running.cancel();
  }

  warn(text, bad = false) {
    this.warning.hidden = !text;
    this.warning.textContent = text ?? "";
    this.warning.classList.toggle("bad", bad);
  }

  show(state, message = null) {
    this.state = state;
    this.halt.hidden = state !== "running";
    this.again.hidden = !(state === "paused" || state === "failed");
    this.leave.hidden = this.again.hidden;
    this.node.dataset.state = state;
    this.warn(message ?? (state === "paused" ? t("training.paused") : null), state === "failed");
    if (state === "running") {
      this.status.textContent = t("training.begins");
      this.bar.removeAttribute("value");
      this.draw();
    } else if (state === "stopping") this.status.textContent = t("training.stopping");
  }
}
