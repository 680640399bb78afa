import assert from "node:assert/strict";
import { test } from "node:test";

const { History, ask, beginAnswer, editAt, forgetFrom, messagesFor, newConversation, titleOf } = await import(`${process.env.PAGE}/history.js`);
const { MemoryTable } = await import(`${process.env.PAGE}/storage.js`);

function talked() {
  const conversation = newConversation("m", 1, "one");
  ask(conversation, "first question");
  beginAnswer(conversation, []).content = "first answer";
  ask(conversation, "second");
  beginAnswer(conversation, ["notes"]).content = "half an ans";
  return conversation;
}

test("what was kept comes back; what was being written is marked", async () => {
  const table = new MemoryTable();
  const history = new History(table);
  await history.save(talked(), 5);
  const later = newConversation("m", 1, "two");
  ask(later, "x");
  await history.save(later, 9);
  await table.put({ id: "strange", version: 99 });
  const again = new History(table);
  assert.deepEqual((await again.load()).map((one) => one.id), ["two", "one"]);
  assert.equal(again.get("one").messages[3].state, "interrupted");
  assert.equal(again.get("one").messages[3].content, "half an ans");
  await again.rename(again.get("one"), "  A name ");
  assert.equal(titleOf((await table.all()).find((one) => one.id === "one"), ""), "A name");
  await again.remove(again.get("one"));
  assert.equal(again.get("one"), null);
  await again.clear();
  assert.deepEqual(await table.all(), []);
});

test("what was deleted does not come back with the end of its answer", async () => {
  const table = new MemoryTable();
  const history = new History(table);
  const [one, two] = [talked(), { ...talked(), id: "two" }];
  await history.save(one);
  await history.remove(one);
  await history.save(one);
  await history.save(two);
  await history.clear();
  await history.save(two);
  assert.deepEqual([history.conversations, await table.all()], [[], []]);
  await history.save(newConversation("m", 1, "three"));
  assert.equal((await table.all()).length, 1);
});

test("going on from an earlier message forgets what came after", () => {
  const conversation = talked();
  editAt(conversation, 2, "another");
  assert.deepEqual(conversation.messages.map((m) => m.content), ["first question", "first answer", "another"]);
  forgetFrom(conversation, 1);
  assert.deepEqual(conversation.messages.map((m) => m.content), ["first question"]);
});

test("what the model gets", () => {
  const conversation = talked();
  conversation.messages[1].content = "";
  assert.deepEqual(messagesFor(conversation, "be kind").map((m) => `${m.role}: ${m.content}`),
    ["system: be kind", "user: first question", "user: second", "assistant: half an ans"]);
  assert.equal(messagesFor(conversation, " ")[0].role, "user");
});

test("titles", () => {
  assert.equal(titleOf(talked(), "?"), "first question");
  const long = newConversation("m");
  assert.equal(titleOf(long, "?"), "?");
  ask(long, "🦊".repeat(100));
  assert.equal(titleOf(long, "?"), `${"🦊".repeat(60)}…`);
});
