// Conversations: what they consist of, and where they are kept. Nothing here touches the page.

export const VERSION = 1;
const TITLE = 60;

/** A new conversation with a model. Messages are `{role, content}`; answers also have `state`
 *  (`writing`, `done`, `stopped`, `interrupted`), `stats`, `dropped`, `notes` (names that were on). */
export function newConversation(model, now = Date.now(), id = crypto.randomUUID?.() ?? String(now + Math.random())) {
  return { id, version: VERSION, title: "", named: false, model, created: now, changed: now, messages: [] };
}

/** Its title: the person's, or the beginning of the first question. */
export function titleOf(conversation, fallback) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === "user");
  const line = first?.content.trim().split("\n", 1)[0] ?? "";
  const letters = [...line];
  return (letters.length > TITLE ? `${letters.slice(0, TITLE).join("").trimEnd()}…` : line) || fallback;
}

/** Ask something at the end. */
export function ask(conversation, content) {
  conversation.messages.push({ role: "user", content });
}

/** Begin an answer; it is the last message. */
export function beginAnswer(conversation, notes) {
  const answer = { role: "assistant", content: "", state: "writing", notes };
  conversation.messages.push(answer);
  return answer;
}

/** Say another thing at `index`, and forget what came after. */
export function editAt(conversation, index, content) {
  conversation.messages.splice(index);
  ask(conversation, content);
}

/** Forget the answer at `index` and what came after, so that its question can be answered again. */
export function forgetFrom(conversation, index) {
  conversation.messages.splice(index);
}

/** What the model gets: the system's message if there is one, and all that was said. Answers that
 *  are empty are left out, with nothing between two questions but themselves. */
export function messagesFor(conversation, system) {
  const said = conversation.messages
    .filter((message) => message.content !== "" || message.role === "user")
    .map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

/** Answers that were being written when the page was killed. */
export function interrupt(conversation) {
  let found = false;
  for (const message of conversation.messages) {
    if (message.state === "writing") {
      message.state = "interrupted";
      found = true;
    }
  }
  return found;
}

/** All conversations on this device. `table` has all, put, delete, clear. */
export class History {
  constructor(table) {
    this.table = table;
    this.conversations = [];
    this.removed = new WeakSet(); // an answer that still ends does not bring them back
  }

  /** Read what was kept, newest first. */
  async load() {
    const found = await this.table.all();
    this.conversations = found.filter(isConversation);
    for (const conversation of this.conversations) interrupt(conversation);
    this.sort();
    return this.conversations;
  }

  sort() {
    this.conversations.sort((a, b) => b.changed - a.changed);
  }

  get(id) {
    return this.conversations.find((conversation) => conversation.id === id) ?? null;
  }

  /** Keep a conversation as it is now. Fails where there is no room. */
  async save(conversation, now = Date.now()) {
    if (this.removed.has(conversation)) return;
    conversation.changed = now;
    if (!this.conversations.includes(conversation)) this.conversations.unshift(conversation);
    this.sort();
    await this.table.put(structuredClone(conversation));
  }

  async rename(conversation, title) {
    conversation.title = title.trim().slice(0, 200);
    await this.table.put(structuredClone(conversation));
  }

  async remove(conversation) {
    this.removed.add(conversation);
    this.conversations = this.conversations.filter((other) => other !== conversation);
    await this.table.delete(conversation.id);
  }

  async clear() {
    for (const conversation of this.conversations) this.removed.add(conversation);
    this.conversations = [];
    await this.table.clear();
  }
}

function isConversation(value) {
  return value?.version === VERSION && typeof value.id === "string" && Array.isArray(value.messages)
    && value.messages.every((message) => typeof message.role === "string" && typeof message.content === "string");
}
