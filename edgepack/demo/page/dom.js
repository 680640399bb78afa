// Making elements. Text always goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `props`: attributes; `on…` are listeners, `class` and `text` as they say, `true` is
 *  an empty attribute, null and false are none. Children are nodes, texts, null, or lists of them. */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Put children in place of all that a node has. */
export function put(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const ICONS = {
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  chat: "M4 5h16v11H10l-4.5 4v-4H4z",
  teach: "M4 20l1.2-4.6L16.6 4a2 2 0 0 1 2.9 0l.5.5a2 2 0 0 1 0 2.9L8.6 18.8zM14.5 6l3.5 3.5",
  bench: "M5 20v-7M12 20V4M19 20v-11",
  about: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 11v5.5M12 7.6v.1",
  add: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  edit: "M4 20l1.2-4.6L16.6 4a2 2 0 0 1 2.9 0l.5.5a2 2 0 0 1 0 2.9L8.6 18.8z",
  retry: "M19 12a7 7 0 1 1-2.1-5M19 3v4.5h-4.5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5v5M8 13.5v5",
  history: "M12 7.5V12l3 2M4.5 9A8 8 0 1 1 4 12M4 4.5V9h4.5",
  close: "M6 6l12 12M18 6L6 18",
  share: "M12 15V4M8 7.5L12 4l4 3.5M6 12H5v8h14v-8h-1",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  check: "M5 12.5l4.5 4.5L19 7.5",
  warn: "M12 4l9 16H3zM12 10v4.5M12 17.4v.1",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  more: "M6 12v.1M12 12v.1M18 12v.1",
  theme: "M12 20a8 8 0 1 0 0-16zM12 4v16",
};

/** One of our icons, which says nothing to a screen reader. */
export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, path);
}

/** A button with an icon, a text, or both. Without a text `label` is read aloud. */
export function button({ label = null, text = null, glyph = null, kind = "", ...props }, ...children) {
  const name = ["button", kind, text === null && children.length === 0 ? "only-icon" : ""].filter(Boolean).join(" ");
  return el("button", { type: "button", class: name, "aria-label": label, title: text === null ? label : null, ...props },
    glyph ? icon(glyph) : null, text === null ? null : el("span", { text }), ...children);
}

let dialogs = 0;

/** A modal sheet with a title; resolves to what `close(value)` was called with, or null. */
export function sheet(title, fill, { closeLabel, wide = false, onclose = null } = {}) {
  return new Promise((resolve) => {
    const id = `dialog-${++dialogs}`;
    const dialog = el("dialog", { class: wide ? "sheet wide" : "sheet", "aria-labelledby": id });
    let result = null;
    const close = (value = null) => { result = value; dialog.close(); };
    const body = el("div", { class: "sheet-body" });
    dialog.append(
      el("header", { class: "sheet-head" }, el("h2", { id, text: title }),
        button({ label: closeLabel, glyph: "close", kind: "quiet", onclick: () => close() })),
      body);
    body.append(...[fill(close)].flat(3).filter(Boolean));
    dialog.addEventListener("close", () => { dialog.remove(); onclose?.(); resolve(result); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Whether a person says yes. */
export function confirmed(title, message, yes, no) {
  return sheet(title, (close) => [
    el("p", { text: message, dir: "auto" }),
    el("div", { class: "row end" },
      button({ text: no, onclick: () => close(false) }),
      button({ text: yes, kind: "danger", onclick: () => close(true) })),
  ], { closeLabel: no });
}

/** A name that a person gives, or null. */
export function asked(title, label, value, yes, no) {
  return sheet(title, (close) => {
    const input = el("input", { type: "text", value, maxlength: 200, dir: "auto", id: "asked", autocomplete: "off" });
    const done = () => close(input.value.trim() || null);
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // else it presses the button that gets the focus back
      done();
    });
    return [el("label", { class: "field", for: "asked" }, el("span", { text: label }), input),
      el("div", { class: "row end" }, button({ text: no, onclick: () => close() }),
        button({ text: yes, kind: "primary", onclick: done }))];
  }, { closeLabel: no });
}

/** Say something to screen readers; `urgent` interrupts. */
export function announce(text, urgent = false) {
  const region = document.getElementById(urgent ? "assertive" : "polite");
  region.textContent = "";
  requestAnimationFrame(() => { region.textContent = text; });
}
