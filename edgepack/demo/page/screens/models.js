// Models: what is on this device, with its note sets; import and remove.

import { announce, button, confirmed, el, icon, put, sheet } from "../dom.js";
import { bytes, day, percent } from "../format.js";
import { t } from "../texts.js";

export class ModelsScreen {
  constructor(app, shell) {
    this.app = app;
    this.shell = shell;
    this.list = el("div", { class: "cards" });
    this.progress = el("div", { class: "card importing", hidden: true });
    const can = app.hello.can.import;
    this.add = button({ text: t("models.import"), glyph: "add", kind: "primary", disabled: can !== true,
      onclick: () => this.import({ kind: "model" }) });
    this.head = el("header", { class: "head" }, el("div", { class: "head-text" },
      el("h1", { tabindex: "-1", text: t("models.title") }),
      el("p", { class: "quiet", text: t("models.about") })), this.add);
    this.node = el("section", { class: "screen models" }, this.head,
      can === true ? null : el("p", { class: "quiet", text: String(can || t("models.cannot")) }), this.progress, this.list);
    app.on("models", () => this.draw());
    app.on("model", () => this.draw());
    this.draw();
  }

  draw() {
    const { models } = this.app;
    this.head.hidden = models.length === 0;
    if (models.length) {
      put(this.list, models.map((model) => this.card(model)));
      return;
    }
    put(this.list, el("div", { class: "empty first" }, el("img", { src: "icon.svg", alt: "", width: 72, height: 72 }),
      el("h1", { tabindex: "-1", text: t("models.firstTitle") }),
      el("p", { text: t("models.firstText") }),
      button({ text: t("models.import"), glyph: "add", kind: "primary", disabled: this.app.hello.can.import !== true,
        onclick: () => this.import({ kind: "model" }) }),
      el("p", { class: "promise" }, icon("lock"), el("span", { text: t(`privacy.short.${this.app.hello.host}`) }))));
  }

  card(model) {
    const chosen = model.id === this.app.model?.id;
    const facts = [bytes(model.bytes), model.architecture, model.factors ? t("models.factors") : null].filter(Boolean);
    return el("article", { class: `card ${chosen ? "chosen" : ""} ${model.problem ? "broken" : ""}` },
      el("div", { class: "card-head" },
        el("div", { class: "grow" }, el("h2", { dir: "auto", text: model.name }),
          el("p", { class: "quiet", text: facts.join(" · ") })),
        chosen ? el("span", { class: "badge" }, icon("check"), t("models.chosen")) : null),
      model.problem ? el("p", { class: "notice bad", text: model.problem, dir: "auto" }) : null,
      this.adapters(model),
      el("div", { class: "row" },
        model.problem ? null : button({ text: t(chosen ? "models.chat" : "models.use"), glyph: chosen ? "chat" : null,
          kind: chosen ? "" : "primary", onclick: () => this.use(model) }),
        model.problem || this.app.hello.can.import !== true ? null
          : button({ text: t("models.importNotes"), glyph: "add", kind: "quiet",
            onclick: () => this.import({ kind: "adapter", model: model.id }) }),
        button({ label: t("models.remove", { name: model.name }), glyph: "remove", kind: "quiet end",
          onclick: () => this.remove(model, null) })),
      model.sha256 ? el("details", { class: "digest" }, el("summary", { text: t("models.digest") }), el("code", { text: model.sha256 })) : null);
  }

  adapters(model) {
    if (!model.adapters.length) return null;
    return el("ul", { class: "adapters", "aria-label": t("models.notes") }, model.adapters.map((adapter) => el("li", {},
      el("div", { class: "grow" }, el("bdi", { class: "row-title", text: adapter.name }),
        el("span", { class: "quiet", text: [
          adapter.examples ? t("models.examples", { count: adapter.examples }) : null, bytes(adapter.bytes),
          adapter.created ? day(timeOf(adapter.created)) : null].filter(Boolean).join(" · ") }),
        adapter.problem ? el("span", { class: "notice bad", text: adapter.problem, dir: "auto" }) : null),
      this.app.hello.can.share === true && !adapter.problem
        ? button({ label: t("models.share", { name: adapter.name }), glyph: "share", kind: "quiet", onclick: () => this.share(model, adapter) })
        : null,
      button({ label: t("models.remove", { name: adapter.name }), glyph: "remove", kind: "quiet",
        onclick: () => this.remove(model, adapter.name) }))));
  }

  use(model) {
    this.app.choose(model.id);
    this.shell.go("chat");
  }

  /** Another app gave files to this one: the person says what they are. */
  async offered() {
    const names = this.app.offered.join(", ");
    this.app.offered = null;
    const { model } = this.app;
    const request = await sheet(t("models.offered"), (close) => [
      el("p", { dir: "auto", text: t("models.offeredText", { names }) }),
      el("div", { class: "row end" },
        model ? button({ text: t("models.asNotes", { name: model.name }), onclick: () => close({ kind: "adapter", model: model.id }) }) : null,
        button({ text: t("models.asModel"), kind: "primary", onclick: () => close({ kind: "model" }) })),
    ], { closeLabel: t("close") });
    if (!request) return;
    this.shell.go("models");
    this.import({ ...request, offered: true });
  }

  async import(request) {
    this.add.disabled = true;
    const bar = el("progress", { max: 1, "aria-label": t("models.importing") });
    const label = el("bdi", { class: "row-title", text: t("models.importing") });
    const share = el("span", { class: "quiet" });
    let running = null;
    put(this.progress, el("div", { class: "card-head" }, el("div", { class: "grow" }, label), share), bar,
      el("div", { class: "row" }, button({ text: t("cancel"), kind: "quiet", onclick: () => running?.cancel() })));
    try {
      running = this.app.client.ask("app", { do: "import", ...request }, (event) => {
        if (event.event !== "progress") return;
        this.progress.hidden = false;
        if (event.label) label.textContent = event.label;
        bar.value = event.share;
        share.textContent = event.share < 1 ? percent(event.share) : t("models.checking");
      });
      const { event, model } = await running.done;
      if (event === "imported") {
        await this.app.refresh();
        if (request.kind === "model" && model?.id) this.app.choose(model.id);
        this.shell.banner("imported", t("models.imported", { name: model?.name ?? "" }), { kind: "good" });
        setTimeout(() => this.shell.unbanner("imported"), 5000);
      }
    } catch (error) {
      this.shell.banner("imported", t("models.importFailed", { message: sentence(error) }));
    }
    this.progress.hidden = true;
    this.add.disabled = false;
  }

  async remove(model, adapter) {
    const name = adapter ?? model.name;
    const text = adapter ? t("models.removeNotes", { name }) : t("models.removeModel", { name });
    if (!await confirmed(t("models.removeTitle"), text, t("remove"), t("cancel"))) return;
    try {
      await this.app.client.ask("app", { do: "remove", model: model.id, adapter }).done;
      announce(t("models.removed", { name }));
    } catch (error) {
      this.shell.banner("imported", sentence(error));
    }
    await this.app.refresh();
  }

  async share(model, adapter) {
    try {
      await this.app.client.ask("app", { do: "share", model: model.id, adapter: adapter.name }).done;
    } catch (error) {
      this.shell.banner("imported", sentence(error));
    }
  }
}

/** What went wrong, with what to do about it. */
export function sentence(error) {
  return [error.message, error.hint].filter(Boolean).join(" – ");
}

function timeOf(created) {
  return typeof created === "number" ? created * 1000 : Date.parse(created);
}
