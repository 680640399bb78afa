// The system's message, sampling, and how the model is loaded.

import { button, el, sheet } from "../dom.js";
import { t } from "../texts.js";
import { SAMPLING } from "../app.js";

const FIELDS = [
  { key: "temperature", min: 0, max: 2, step: 0.05 },
  { key: "max_tokens", min: 1, max: 4096, step: 1 },
  { key: "top_k", min: 0, max: 1000, step: 1 },
  { key: "top_p", min: 0, max: 1, step: 0.01 },
  { key: "min_p", min: 0, max: 1, step: 0.01 },
  { key: "repeat_penalty", min: 0.5, max: 2, step: 0.01 },
  { key: "seed", min: 0, max: 4294967295, step: 1 },
];
const LOADING = [
  { key: "context", min: 0, max: 32768, step: 64 },
  { key: "threads", min: 0, max: 64, step: 1 },
];

export function openSettings(app) {
  const sampling = { ...app.settings.sampling };
  return sheet(t("settings"), (close) => {
    const inputs = {};
    const field = ({ key, min, max, step }) => {
      inputs[key] = el("input", { type: "number", id: `set-${key}`, min, max, step, value: String(sampling[key]), inputmode: "decimal",
        "aria-describedby": `about-${key}`,
        onchange: () => {
          const value = Number(inputs[key].value);
          const right = inputs[key].value !== "" && Number.isFinite(value) && value >= min && value <= max;
          inputs[key].value = String(right ? value : sampling[key]);
          if (right) app.set({ sampling: { ...app.settings.sampling, [key]: value } });
        } });
      return el("label", { class: "field line", for: `set-${key}` },
        el("span", {}, el("span", { text: t(`set.${key}`) }), el("small", { id: `about-${key}`, text: t(`set.${key}.about`) })), inputs[key]);
    };
    const system = el("textarea", { id: "set-system", rows: 3, dir: "auto", value: app.settings.system, placeholder: t("set.systemHint"),
      oninput: () => app.set({ system: system.value }) });
    return [
      el("label", { class: "field", for: "set-system" }, el("span", { text: t("set.system") }), system),
      FIELDS.slice(0, 2).map(field),
      el("details", {}, el("summary", { text: t("advanced") }), FIELDS.slice(2).map(field), LOADING.map(field)),
      el("div", { class: "row end" },
        button({ text: t("set.reset"), kind: "quiet", onclick: () => {
          app.set({ sampling: { ...SAMPLING } });
          for (const [key, input] of Object.entries(inputs)) input.value = String(SAMPLING[key]);
        } }),
        button({ text: t("done"), kind: "primary", onclick: () => close() })),
    ];
  }, { closeLabel: t("close") });
}
