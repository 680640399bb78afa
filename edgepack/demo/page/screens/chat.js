// Chat: a conversation with the chosen model.

import { announce, button, el, icon, put } from "../dom.js";
import { ask, beginAnswer, editAt, forgetFrom, messagesFor, newConversation, titleOf } from "../history.js";
import { t } from "../texts.js";
import { Announcer, MessageView } from "./message.js";
import { openHistory } from "./history-sheet.js";
import { openSettings } from "./settings-sheet.js";

const SAVE_EVERY = 700; // milliseconds, while an answer is written

export class ChatScreen {
  constructor(app, shell) {
    this.app = app;
    this.shell = shell;
    this.views = [];
    this.running = null;
    this.build();
    this.open(app.history.get(app.settings.conversation));
    app.on("models", () => this.showModel());
    app.on("model", () => this.showModel());
    app.on("settings", () => this.showNotes());
    app.on("load", (share) => this.showLoading(share));
  }

  build() {
    this.title = el("h1", { tabindex: "-1" });
    this.picker = el("select", { "aria-label": t("chat.model"), onchange: () => this.app.choose(this.picker.value) });
    this.only = el("p", { class: "quiet", dir: "auto" });
    this.notes = el("div", { class: "chips", role: "group", "aria-label": t("chat.notes") });
    this.list = el("div", { class: "messages", role: "log", "aria-live": "off", "aria-label": t("chat.log") });
    this.status = el("div", { class: "loading", hidden: true });
    this.input = el("textarea", {
      rows: 1, dir: "auto", id: "question", placeholder: t("chat.placeholder"), "aria-label": t("chat.placeholder"),
      enterkeyhint: "send",
      oninput: () => this.resized(),
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.submit();
      },
    });
    this.go = button({ label: t("chat.send"), glyph: "send", kind: "primary round", onclick: () => this.submit() });
    this.halt = button({ label: t("chat.stop"), glyph: "stop", kind: "primary round", hidden: true, onclick: () => this.stop() });
    this.composer = el("div", { class: "composer" }, this.input, this.go, this.halt);
    this.node = el("section", { class: "screen chat" },
      el("header", { class: "head" },
        el("div", { class: "head-text" }, this.title, el("div", { class: "picker" }, this.picker, this.only)),
        button({ label: t("chat.new"), glyph: "add", kind: "quiet", onclick: () => this.fresh() }),
        button({ label: t("chat.history"), glyph: "history", kind: "quiet", onclick: () => this.openHistory() }),
        button({ label: t("settings"), glyph: "settings", kind: "quiet", onclick: () => openSettings(this.app) })),
      this.notes,
      this.list,
      el("footer", { class: "foot" }, this.status, this.composer));
  }

  shown() {
    this.showModel();
    this.resized();
    this.toEnd(true);
  }

  showModel() {
    const { models, model } = this.app;
    put(this.picker, models.map((one) => el("option", {
      value: one.id, selected: one.id === model?.id, disabled: Boolean(one.problem), text: one.name })));
    this.picker.hidden = models.length < 2;
    this.composer.classList.toggle("off", !model);
    this.input.disabled = !model;
    this.go.disabled = !model;
    this.showNotes();
    this.showTitle();
    if (!this.conversation.messages.length) this.showEmpty();
  }

  showTitle() {
    const name = this.app.model?.name ?? "";
    this.title.textContent = titleOf(this.conversation, t("chat.new"));
    this.only.textContent = name;
    this.only.hidden = !name || !this.picker.hidden;
    this.title.dir = "auto";
  }

  /** A switch for each set of notes. */
  showNotes() {
    const { app } = this;
    const names = app.usable();
    const on = new Set(app.notesOn());
    this.notes.hidden = names.length === 0;
    put(this.notes, names.map((name) => el("button", {
      type: "button", class: "chip", role: "switch", "aria-checked": String(on.has(name)),
      onclick: (event) => {
        app.switchNotes(app.model, name, !on.has(name));
        announce(t(on.has(name) ? "chat.notesOff" : "chat.notesOn", { name }));
        [...this.notes.children][names.indexOf(name)]?.focus();
        event.preventDefault();
      },
    }, el("span", { class: "knob" }), el("bdi", { text: name }))));
  }

  showLoading(share) {
    this.status.hidden = share === null;
    if (share === null) return;
    put(this.status, el("span", { class: "spinner" }), el("span", { text: t("chat.loading") }),
      el("progress", { max: 1, value: share, "aria-label": t("chat.loading") }));
  }

  showEmpty() {
    const { app } = this;
    put(this.list, el("div", { class: "empty" }, icon("chat"),
      el("h2", { text: app.model ? t("chat.emptyTitle") : t("chat.noModel") }),
      el("p", { class: "quiet", text: app.model ? t("chat.emptyText") : t("models.firstText") }),
      app.model
        ? el("div", { class: "suggestions" }, [1, 2, 3].map((i) => button({
          text: t(`chat.suggestion${i}`), kind: "soft", onclick: () => this.say(t(`chat.suggestion${i}`)) })))
        : button({ text: t("models.import"), glyph: "add", kind: "primary", onclick: () => this.shell.go("models") })));
  }

  /** Show a conversation, or a new one. */
  open(conversation) {
    this.stop();
    this.conversation = conversation ?? newConversation(this.app.settings.model);
    this.app.set({ conversation: conversation?.id ?? null });
    this.draw();
  }

  fresh() {
    this.open(null);
    this.input.focus();
  }

  draw() {
    this.views = [];
    if (this.app.models) this.showTitle();
    if (!this.conversation.messages.length) {
      this.showEmpty();
      return;
    }
    put(this.list, this.conversation.messages.map((message, index) => this.addView(message, index)));
    this.toEnd(true);
  }

  addView(message, index) {
    const view = new MessageView(message, {
      edit: (text) => this.edit(index, text),
      retry: () => this.retry(index),
    });
    this.views.push(view);
    return view.node;
  }

  submit() {
    const text = this.input.value.trim();
    if (!text || this.running || !this.app.model) return;
    this.input.value = "";
    this.resized();
    this.say(text);
  }

  say(text) {
    if (this.running) return;
    ask(this.conversation, text);
    this.answer();
  }

  edit(index, text) {
    this.stop();
    editAt(this.conversation, index, text);
    this.answer();
  }

  retry(index) {
    this.stop();
    forgetFrom(this.conversation, index);
    this.answer();
  }

  /** Have the last question answered. */
  async answer() {
    const { app, conversation } = this;
    const messages = messagesFor(conversation, app.settings.system);
    const answer = beginAnswer(conversation, app.notesOn());
    conversation.model = app.model.id;
    app.set({ conversation: conversation.id });
    this.draw();
    const view = this.views.at(-1);
    const announcer = new Announcer();
    let saving = null;
    view.writing();
    const running = app.chat(messages, answer.notes, (event) => {
      if (event.event === "started") answer.dropped = event.dropped_messages;
      if (event.event !== "text") return;
      answer.content += event.text;
      announcer.add(event.text);
      view.changed();
      this.toEnd();
      saving ??= setTimeout(() => {
        saving = null;
        app.keep(conversation);
      }, SAVE_EVERY);
    });
    this.setRunning(running);
    app.keep(conversation);
    try {
      const ended = await running.done;
      answer.state = ended.reason === "cancelled" ? "stopped" : "done";
      answer.stats = statsOf(ended);
    } catch (error) {
      answer.state = "interrupted";
      answer.error = [error.message, error.hint].filter(Boolean).join(" – ");
    }
    clearTimeout(saving);
    announcer.end();
    if (this.running === running) this.setRunning(null);
    view.changed();
    await app.keep(conversation);
    this.toEnd();
  }

  setRunning(running) {
    this.running = running;
    const had = [this.go, this.halt].includes(document.activeElement);
    this.go.hidden = Boolean(running);
    this.halt.hidden = !running;
    if (had) (running ? this.halt : this.go).focus();
    this.list.setAttribute("aria-busy", String(Boolean(running)));
  }

  stop() {
    this.running?.stop();
    if (this.running) this.setRunning(null);
  }

  openHistory() {
    openHistory(this.app, this.conversation, {
      open: (conversation) => this.open(conversation),
      removed: (conversation) => { if (!conversation || conversation === this.conversation) this.open(null); },
      renamed: () => this.showTitle(),
    });
  }

  /** Keep the end in sight, unless the person has scrolled away from it. */
  toEnd(always = false) {
    if (!this.conversation.messages.length) return;
    const scroller = getComputedStyle(this.list).overflowY === "visible" ? this.node : this.list;
    const { scrollHeight, scrollTop, clientHeight } = scroller;
    if (always || scrollHeight - scrollTop - clientHeight < 120) scroller.scrollTop = scrollHeight;
  }

  resized() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * 0.35)}px`;
  }
}

function statsOf({ reason, tokens, tokens_per_second, first_token_seconds, memory, cached_tokens, prompt_tokens }) {
  return { reason, tokens, tokens_per_second, first_token_seconds, peak: memory?.peak ?? null, cached_tokens, prompt_tokens };
}
