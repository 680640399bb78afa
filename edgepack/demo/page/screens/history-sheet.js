// The conversations of this device, in a sheet: open, rename, delete.

import { asked, button, confirmed, el, icon, put, sheet } from "../dom.js";
import { day } from "../format.js";
import { titleOf } from "../history.js";
import { t } from "../texts.js";

export function openHistory(app, current, acts) {
  return sheet(t("history.title"), (close) => {
    const list = el("div", { class: "rows" });
    const draw = () => put(list, app.history.conversations.length
      ? app.history.conversations.map((one) => row(one))
      : el("div", { class: "empty small" }, icon("history"), el("p", { class: "quiet", text: t("history.empty") })));
    const row = (one) => {
      const name = titleOf(one, t("history.untitled"));
      return el("div", { class: "row-item", "aria-current": one === current ? "true" : null },
        el("button", { type: "button", class: "row-main", onclick: () => { close(); acts.open(one); } },
          el("bdi", { class: "row-title", text: name }),
          el("span", { class: "quiet", text: t("history.about", { count: one.messages.length, day: day(one.changed) }) })),
        button({ label: t("history.rename", { name }), glyph: "edit", kind: "quiet", onclick: async () => {
          const title = await asked(t("history.renameTitle"), t("history.name"), name, t("save"), t("cancel"));
          if (title) await app.history.rename(one, title);
          acts.renamed();
          draw();
        } }),
        button({ label: t("history.remove", { name }), glyph: "remove", kind: "quiet", onclick: async () => {
          if (!await confirmed(t("history.removeTitle"), t("history.removeText", { name }), t("remove"), t("cancel"))) return;
          await app.history.remove(one);
          acts.removed(one);
          draw();
        } }));
    };
    draw();
    return [list, el("div", { class: "row end" }, button({ text: t("history.clear"), kind: "danger quiet", onclick: async () => {
      if (!await confirmed(t("history.clear"), t("history.clearText"), t("remove"), t("cancel"))) return;
      await app.history.clear();
      acts.removed(null);
      draw();
    } }))];
  }, { closeLabel: t("close") });
}
