// What goes wrong and a person can read: one sentence, and perhaps what to do.

export class Problem extends Error {
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

/** The event that ends a request with an error. Errors that nobody foresaw are named, without paths. */
export function failed(error) {
  const message = String(error?.message ?? error).split("\n")[0].replace(/\b(?:https?|blob|file):\S+/g, "a file");
  const event = { event: "failed", message: message.slice(0, 300) || "it did not work" };
  return error?.hint ? { ...event, hint: error.hint } : event;
}
