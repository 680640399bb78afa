// What the page keeps on this device: settings in localStorage, conversations and drafts in IndexedDB.
// Each value has a version; one of another version is left alone and not used.

const PREFIX = "edgepack.";

/** A value of localStorage, if it is there and of this version. */
export function readSetting(name, version, fallback) {
  try {
    const stored = JSON.parse(localStorage.getItem(PREFIX + name));
    return stored && stored.version === version ? stored.value : fallback;
  } catch {
    return fallback; // no storage, or somebody else's text
  }
}

/** Keep a value; whether there was room. */
export function writeSetting(name, version, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify({ version, value }));
    return true;
  } catch {
    return false;
  }
}

export function clearSettings() {
  for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) localStorage.removeItem(key);
}

/** Tables of values by `id`. In memory only, where the browser keeps nothing. */
export class Table {
  constructor(name, database) {
    this.name = name;
    this.database = database;
  }

  async all() {
    return this.run("readonly", (store) => store.getAll());
  }

  async get(id) {
    return this.run("readonly", (store) => store.get(id));
  }

  async put(value) {
    await this.run("readwrite", (store) => store.put(value));
  }

  async delete(id) {
    await this.run("readwrite", (store) => store.delete(id));
  }

  async clear() {
    await this.run("readwrite", (store) => store.clear());
  }

  run(mode, act) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(this.name, mode);
      const request = act(transaction.objectStore(this.name));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error || request.error);
      transaction.onerror = () => reject(transaction.error || request.error);
    });
  }
}

/** The same in memory, for browsers that keep nothing (private windows, tests). */
export class MemoryTable {
  constructor() {
    this.values = new Map();
  }

  async all() {
    return [...this.values.values()].map((value) => structuredClone(value));
  }

  async get(id) {
    return structuredClone(this.values.get(id));
  }

  async put(value) {
    this.values.set(value.id, structuredClone(value));
  }

  async delete(id) {
    this.values.delete(id);
  }

  async clear() {
    this.values.clear();
  }
}

const TABLES = ["conversations", "drafts"];

/** The tables of this device; `kept` says whether they outlive the page. */
export async function openTables() {
  try {
    const database = await new Promise((resolve, reject) => {
      const request = indexedDB.open("edgepack", 1);
      request.onupgradeneeded = () => {
        for (const name of TABLES) {
          if (!request.result.objectStoreNames.contains(name)) request.result.createObjectStore(name, { keyPath: "id" });
        }
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("blocked"));
    });
    database.onversionchange = () => database.close();
    return { kept: true, ...Object.fromEntries(TABLES.map((name) => [name, new Table(name, database)])) };
  } catch {
    return { kept: false, ...Object.fromEntries(TABLES.map((name) => [name, new MemoryTable()])) };
  }
}
