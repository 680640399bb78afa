// What this browser keeps: pieces of files in the origin's private file system, each under its sha256, and
// records in IndexedDB (imported models, adapters, trainings).

import { Problem } from "./problem.js";

const NAME = "edgepack-browser", VERSION = 1;
const STORES = ["models", "adapters", "jobs", "states"];
const PIECES = "pieces";

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => STORES.forEach((store) => request.result.createObjectStore(store));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(store, mode, act) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(store, mode, { durability: "strict" });
      const request = act(transaction.objectStore(store));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(full(transaction.error));
    });
  } finally {
    database.close();
  }
}

function full(error) {
  if (error?.name !== "QuotaExceededError") return error;
  return new Problem("this browser has no space left for it", "remove a model, or free space on the disk");
}

export const get = (store, key) => within(store, "readonly", (found) => found.get(key));
export const all = (store) => within(store, "readonly", (found) => found.getAll());
export const put = (store, key, value) => within(store, "readwrite", (found) => found.put(value, key));
export const drop = (store, key) => within(store, "readwrite", (found) => found.delete(key));

async function folder() {
  if (!navigator.storage?.getDirectory) {
    throw new Problem("this browser has no private file system", "use a newer one; private windows have none either");
  }
  const root = await navigator.storage.getDirectory();
  return root.getDirectoryHandle(PIECES, { create: true });
}

/** A piece as a File, or null. */
export async function piece(sha256, bytes) {
  try {
    const file = await (await (await folder()).getFileHandle(sha256)).getFile();
    return file.size === bytes ? file : null;
  } catch (error) {
    if (error.name === "NotFoundError") return null;
    throw error;
  }
}

export async function writePiece(sha256, data) {
  const handle = await (await folder()).getFileHandle(sha256, { create: true });
  const stream = await handle.createWritable(); // it appears whole, when it is closed
  try {
    await stream.write(data);
    await stream.close();
  } catch (error) {
    await stream.abort?.().catch(() => {});
    throw full(error);
  }
}

/** Remove all pieces but these. */
export async function keepPieces(wanted) {
  const place = await folder();
  for await (const name of place.keys()) {
    if (!wanted.has(name)) await place.removeEntry(name).catch(() => {});
  }
}

/** Ask the browser not to throw it away when space is short. */
export const persist = () => navigator.storage?.persist?.().catch(() => false);

/** Hex digits of the sha256 of bytes in memory. */
export async function digest(bytes) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...found].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
