// The page's start: its frame, its screens, and what is said at the top.

import { App } from "./app.js";
import { announce, button, el, icon, put } from "./dom.js";
import { hostName } from "./host.js";
import { direction, language, t } from "./texts.js";
import { AboutScreen } from "./screens/about.js";
import { BenchScreen } from "./screens/bench.js";
import { ChatScreen } from "./screens/chat.js";
import { ModelsScreen } from "./screens/models.js";
import { TeachScreen } from "./screens/teach.js";

const SCREENS = { models: ModelsScreen, chat: ChatScreen, teach: TeachScreen, bench: BenchScreen, about: AboutScreen };

const app = new App();
const screens = {};
const links = {};
const main = document.getElementById("main");

document.documentElement.lang = language;
document.documentElement.dir = direction;
const skip = document.getElementById("skip");
skip.textContent = t("nav.skip");
skip.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
const nav = document.getElementById("nav");
nav.setAttribute("aria-label", t("nav.label"));
const banners = document.getElementById("banners");
banners.setAttribute("aria-label", t("banner.label"));

/** Something that a person has to know, until it is over or put away. `act` is `[text, function]`. */
export function banner(key, text, { act = null, kind = "", lasting = false } = {}) {
  unbanner(key);
  const node = el("div", { class: `banner ${kind}`, "data-key": key }, icon(kind === "good" ? "check" : "warn"),
    el("p", { text, dir: "auto" }),
    act ? button({ text: act[0], kind: "small", onclick: () => { unbanner(key); act[1](); } }) : null,
    lasting ? null : button({ label: t("close"), glyph: "close", kind: "quiet small", onclick: () => node.remove() }));
  banners.append(node);
  announce(text, kind !== "good");
}

export function unbanner(key) {
  banners.querySelector(`[data-key="${key}"]`)?.remove();
}

export function applyTheme() {
  const { theme } = app.settings;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Show a screen. `focus`: a person went there, so that the keyboard goes there too. */
function show(name, focus) {
  for (const [other, screen] of Object.entries(screens)) {
    screen.node.hidden = other !== name;
    if (other === name) links[other].setAttribute("aria-current", "page");
    else links[other].removeAttribute("aria-current");
  }
  document.title = `${t(`nav.${name}`)} · edgepack`;
  document.body.dataset.screen = name;
  screens[name].shown?.();
  if (focus) screens[name].node.querySelector("h1")?.focus({ preventScroll: true });
}

function place() {
  const name = location.hash.replace(/^#\/?/, "").split("/")[0];
  if (name in SCREENS) return name;
  return app.models.length ? "chat" : "models";
}

function build() {
  for (const name of Object.keys(SCREENS)) {
    const link = el("a", { href: `#/${name}`, class: "nav-item" }, icon(name), el("span", { text: t(`nav.${name}`) }));
    links[name] = link;
    nav.append(link);
  }
  nav.prepend(el("div", { class: "brand", "aria-hidden": "true" }, icon("models"), el("span", { text: "edgepack" })));
  put(main, Object.entries(SCREENS).map(([name, Screen]) => {
    screens[name] = new Screen(app, { banner, unbanner, applyTheme, go: (to) => { location.hash = `#/${to}`; } });
    screens[name].node.hidden = true;
    return screens[name].node;
  }));
  window.addEventListener("hashchange", () => show(place(), true));
  show(place(), false);
}

function hearOfTrouble() {
  app.on("full", () => banner("full", t("banner.full")));
  app.on("died", () => banner("died", t("banner.died"), {
    act: [t("banner.loadAgain"), () => load()] }));
  app.on("host", ({ connected, message }) => {
    if (connected) {
      unbanner("host");
      app.refresh().catch(() => {});
    } else banner("host", message ?? t("banner.host"), { lasting: true });
  });
  app.on("offered", () => screens.models.offered());
  if (app.offered) screens.models.offered();
  if (!app.kept) banner("kept", t("banner.notKept"));
}

async function load() {
  try {
    await app.ensureLoaded();
    unbanner("died");
    banner("again", t("banner.loaded"), { kind: "good" });
    setTimeout(() => unbanner("again"), 4000);
  } catch (error) {
    banner("died", error.message, { act: [t("banner.loadAgain"), () => load()] });
  }
}

async function start() {
  applyTheme();
  put(main, el("div", { class: "waiting" }, el("span", { class: "spinner" }), el("p", { text: t("starting") })));
  try {
    await app.start();
  } catch (error) {
    put(main, el("div", { class: "empty" }, icon("warn"), el("h1", { text: t("start.failed"), tabindex: "-1" }),
      el("p", { text: error.message, dir: "auto" }),
      el("p", { class: "quiet", text: t(hostName() === "relay" ? "start.relay" : "start.hint") }),
      button({ text: t("retry"), glyph: "retry", onclick: () => location.reload() })));
    return;
  }
  build();
  hearOfTrouble();
}

start();
