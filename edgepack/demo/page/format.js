// Numbers, sizes and times as people of this language write them.

import { language, t } from "./texts.js";

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${number(size, unit > 1 && size < 10 ? 1 : 0)} ${units[unit]}`;
}

export function percent(share) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 }).format(share);
}

/** Tokens a second. */
export function speed(value) {
  return value ? t("speed", { value: number(value, value < 10 ? 1 : 0) }) : "–";
}

/** Seconds, roughly, as long times should be said. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.1) return t("milliseconds", { value: number(seconds * 1000, seconds < 0.01 ? 1 : 0) });
  if (seconds < 1) return t("seconds", { value: number(seconds, 2) });
  if (seconds < 10) return t("seconds", { value: number(seconds, 1) });
  if (seconds < 90) return t("seconds", { value: number(seconds) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return t("minutes", { value: number(minutes) });
  return t("hours", { value: number(seconds / 3600, 1) });
}

export function day(time) {
  const date = new Date(time);
  const today = new Date().toDateString() === date.toDateString();
  const style = today ? { timeStyle: "short" } : { dateStyle: "medium" };
  return new Intl.DateTimeFormat(language, style).format(date);
}
