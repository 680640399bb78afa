// Fields of requests: wrong types are refused in one sentence (docs/workers.md).

import { Problem } from "./problem.js";

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const KINDS = {
  text: [(value) => typeof value === "string", "a text"],
  number: [(value) => typeof value === "number" && Number.isFinite(value), "a number"],
  count: [(value) => Number.isInteger(value) && value >= 0, "a whole number, at least 0"],
  list: [Array.isArray, "a list"],
  object: [isObject, "an object"],
  bool: [(value) => typeof value === "boolean", "true or false"],
};

/** A field of that kind; where it is absent or null, `otherwise`, or an error if there is none. */
export function field(request, name, kind, otherwise) {
  const value = request[name];
  if (value === undefined || value === null) {
    if (otherwise !== undefined) return otherwise;
    throw new Problem(`${name} is missing`);
  }
  const [fits, called] = KINDS[kind];
  if (!fits(value)) throw new Problem(`${name} should be ${called}`);
  return value;
}

/** Messages with a role and a content each. */
export function messagesOf(request) {
  const messages = field(request, "messages", "list");
  if (!messages.length) throw new Problem("messages is empty");
  for (const message of messages) {
    if (!isObject(message) || typeof message.role !== "string" || typeof message.content !== "string") {
      throw new Problem("messages should be a list of {role, content}");
    }
  }
  return messages.map(({ role, content }) => ({ role, content }));
}

/** Adapter → scale. */
export function scalesOf(request) {
  const scales = field(request, "scales", "object", {});
  for (const name of Object.keys(scales)) field(scales, name, "number");
  return scales;
}

/** Whether a value is a request at all. */
export function isRequest(value) {
  return isObject(value) && typeof value.id === "string" && value.id.length <= 64 && typeof value.do === "string";
}
