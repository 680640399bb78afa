// How notes are learnt: few people change this.

import { el } from "../dom.js";
import { t } from "../texts.js";

const FIELDS = [
  { key: "epochs", min: 1, max: 1000, step: 1, hint: "auto" },
  { key: "r", min: 1, max: 256, step: 1, hint: "8" },
  { key: "learning_rate", min: 1e-6, max: 1, step: "any", hint: "0.001" },
  { key: "batch_size", min: 1, max: 64, step: 1, hint: "4" },
  { key: "sequence_length", min: 8, max: 4096, step: 8, hint: "512" },
  { key: "replay", min: 0, max: 8, step: 0.25, hint: "0.5" },
  { key: "memory", min: 50, max: 64000, step: 50, hint: "auto" },
  { key: "seed", min: 0, max: 4294967295, step: 1, hint: "0" },
];
const LEAST_STEPS = 24; // four notes are learnt word for word in so many (docs/finetuning.md)

export class OptionsForm {
  constructor(changed) {
    this.inputs = {};
    this.select = el("select", { id: "opt-mode", onchange: changed }, ["stack", "factors"].map((mode) => el("option", { value: mode, text: t(`opt.mode.${mode}`) })));
    this.skip = el("input", { type: "checkbox", id: "opt-skip", onchange: changed });
    this.node = el("details", {}, el("summary", { text: t("advanced") }),
      el("label", { class: "field", for: "opt-mode" }, el("span", { text: t("opt.mode") }), this.select, el("small", { text: t("opt.mode.about") })),
      el("div", { class: "fields" }, FIELDS.map(({ key, min, max, step, hint }) => {
        this.inputs[key] = el("input", { type: "number", id: `opt-${key}`, min, max, step, inputmode: "decimal", placeholder: hint === "auto" ? t("opt.auto") : hint,
          onchange: () => {
            const value = Number(this.inputs[key].value);
            if (!(value >= min && value <= max)) this.inputs[key].value = "";
            changed();
          } });
        return el("label", { class: "field", for: `opt-${key}` }, el("span", { text: t(`opt.${key}`) }), this.inputs[key], el("small", { text: t(`opt.${key}.about`) }));
      })),
      el("label", { class: "check", for: "opt-skip" }, this.skip, el("span", { text: t("opt.skip") })));
  }

  get mode() {
    return this.select.value;
  }

  /** What the person has set, by key. */
  values() {
    const set = Object.entries(this.inputs).filter(([, input]) => input.value !== "").map(([key, input]) => [key, Number(input.value)]);
    return { ...Object.fromEntries(set), mode: this.mode, skip_bad_rows: this.skip.checked };
  }

  set(values) {
    for (const [key, input] of Object.entries(this.inputs)) input.value = values?.[key] ?? "";
    this.select.value = values?.mode ?? "stack";
    this.skip.checked = Boolean(values?.skip_bad_rows);
  }
}

/** Options of a request. Without a number of passes, few notes get as many steps as they need. */
export function optionsFor({ mode, memory, ...values }, examples) {
  const options = { ...values };
  if (memory) options.memory = memory * 1e6;
  const batch = values.batch_size ?? 4;
  if (!values.epochs) options.epochs = Math.max(3, Math.ceil(LEAST_STEPS / Math.ceil(examples / batch)));
  return options;
}
