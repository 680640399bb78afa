// About: what runs where, who sees what, versions; the theme; delete everything.

import { button, confirmed, el, icon, put } from "../dom.js";
import { bytes, percent } from "../format.js";
import { t } from "../texts.js";

export class AboutScreen {
  constructor(app, shell) {
    this.app = app;
    this.shell = shell;
    const { host } = app.hello;
    this.facts = el("dl", { class: "facts" });
    this.node = el("section", { class: "screen about" },
      el("header", { class: "head" }, el("div", { class: "head-text" }, el("h1", { tabindex: "-1", text: t("about.title") }),
        el("p", { class: "quiet", text: t("about.lead") }))),
      el("article", { class: "card" }, el("div", { class: "card-head" }, icon("lock"), el("h2", { text: t("privacy.title") })),
        el("p", { text: t(`privacy.${host}`) }),
        el("h3", { text: t("privacy.checkTitle") }),
        el("ul", { class: "plain" }, [1, 2].map((i) => el("li", { text: t(`privacy.check.${host}.${i}`) })))),
      el("article", { class: "card" }, el("h2", { text: t("about.where") }),
        el("ul", { class: "plain" }, ["chat", "teach", "kept"].map((what) => el("li", { text: t(`about.${what}.${host}`) })))),
      el("article", { class: "card" }, el("h2", { text: t("about.theme") }), this.themes()),
      el("article", { class: "card" }, el("h2", { text: t("about.versions") }), this.facts),
      el("article", { class: "card danger-zone" }, el("h2", { text: t("about.delete") }), el("p", { text: t("about.deleteText") }),
        el("div", { class: "row" }, button({ text: t("about.delete"), glyph: "remove", kind: "danger", onclick: () => this.deleteAll() }))));
    app.on("device", () => this.draw());
    app.on("load", () => this.draw());
    this.draw();
  }

  shown() {
    this.app.client.ask("app", { do: "device" }).done.then((event) => this.app.hear(event), () => {});
  }

  themes() {
    return el("div", { class: "segments", role: "radiogroup", "aria-label": t("about.theme") },
      ["auto", "light", "dark"].map((theme) => el("label", { class: "segment" },
        el("input", { type: "radio", name: "theme", value: theme, checked: this.app.settings.theme === theme,
          onchange: () => { this.app.set({ theme }); this.shell.applyTheme(); } }),
        el("span", { text: t(`theme.${theme}`) }))));
  }

  draw() {
    const { hello, device, loaded } = this.app;
    const entries = [
      [t("about.program"), `edgepack ${hello.version}`],
      [t("about.host"), t(`host.${hello.host}`)],
      [t("about.device"), [hello.device.name, t("about.cores", { count: hello.device.cores }), bytes(hello.device.memory)].filter(Boolean).join(" · ")],
      loaded ? [t("about.loaded"), t("about.loadedText", { name: loaded.name, context: loaded.context, threads: loaded.threads })] : null,
      device ? [t("about.free"), bytes(device.memory_free)] : null,
      device && device.battery !== null ? [t("about.battery"), t(device.charging ? "about.charging" : "about.onBattery", { share: percent(device.battery) })] : null,
      device?.thermal ? [t("about.heat"), t(`heat.${device.thermal}`)] : null,
    ].filter(Boolean);
    put(this.facts, entries.map(([name, value]) => [el("dt", { text: name }), el("dd", { text: value, dir: "auto" })]));
  }

  async deleteAll() {
    if (!await confirmed(t("about.delete"), t("about.deleteSure"), t("remove"), t("cancel"))) return;
    await this.app.deleteAll();
    location.hash = "#/";
    location.reload();
  }
}
