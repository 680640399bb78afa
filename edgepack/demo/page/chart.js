// Two small charts in SVG: a curve of losses, and bars with their names.

import { el, svg } from "./dom.js";

const WIDE = 320;
const HIGH = 140;

/** A curve of values, one a step, of `steps`; with a smoothed line on top. */
export function lossCurve(losses, steps, label) {
  const top = Math.max(...losses, 0.1) * 1.05;
  const x = (i) => 4 + (WIDE - 8) * (steps > 1 ? i / (steps - 1) : 0.5);
  const y = (value) => HIGH - 6 - (HIGH - 14) * Math.min(1, value / top);
  const path = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const last = losses.length - 1;
  return svg("svg", { class: "curve", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
    [0.25, 0.5, 0.75].map((share) => svg("line", { class: "grid", x1: 4, x2: WIDE - 4, y1: y(top * share), y2: y(top * share) })),
    svg("line", { class: "axis", x1: 4, x2: WIDE - 4, y1: HIGH - 6, y2: HIGH - 6 }),
    losses.length > 12 ? svg("path", { class: "faint", d: path(losses) }) : null,
    svg("path", { class: "line", d: path(losses.length > 12 ? smooth(losses) : losses) }),
    last >= 0 ? svg("circle", { class: "point", cx: x(last), cy: y(losses.length > 12 ? smooth(losses)[last] : losses[last]), r: 3.5 }) : null);
}

/** An exponential mean. */
function smooth(values) {
  let mean = values[0];
  return values.map((value) => { mean = 0.75 * mean + 0.25 * value; return mean; });
}

/** Bars of `{name, value, text}`, the longest as wide as there is room. */
export function bars(entries) {
  const most = Math.max(...entries.map((entry) => entry.value), 1e-9);
  return el("div", { class: "bars", "aria-hidden": "true" }, entries.map(({ name, value, text }) => {
    const bar = el("span", { class: "bar" });
    bar.style.inlineSize = `${Math.max(1, (100 * value) / most)}%`;
    return el("div", { class: "bar-row" }, el("span", { class: "bar-name", text: name }),
      el("span", { class: "bar-track" }, bar), el("span", { class: "bar-text", text }));
  }));
}
