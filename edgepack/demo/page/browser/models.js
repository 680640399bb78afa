// The models of the folder (models.json) and those that a person imported, with their adapters.

import { readGguf, describe } from "./gguf.js";
import { imported, opened } from "./files.js";
import { rooted } from "./place.js";
import { Problem } from "./problem.js";
import { sha256Text } from "./sha256.js";
import * as store from "./store.js";
import { Text, textOfGguf } from "./text.js";
import { texts } from "./vendor.js";

const HIDDEN = "hidden";

export class Models {
  constructor() {
    this.folder = null; // models.json, read once: it belongs to this version of the page
  }

  /** All models, as records: those of models.json, and imported ones in the same form. */
  async records() {
    this.folder ??= await fetched("models.json");
    return [...this.folder.models, ...(await store.all("models")).filter(({ id }) => id)];
  }

  async record(id) {
    const found = (await this.records()).find((record) => record.id === id);
    if (!found) throw new Problem("there is no such model");
    return found;
  }

  /** Adapters of a model by name: {name, examples, created, digest, file or data}. */
  async adaptersOf(record) {
    const hidden = (await store.get("models", HIDDEN)) ?? [];
    const own = (await store.all("adapters")).filter(({ model }) => model === record.id);
    const given = record.adapters.filter(({ name }) => !hidden.includes(`${record.id}/${name}`));
    const names = new Set(own.map(({ name }) => name));
    return [...given.filter(({ name }) => !names.has(name)), ...own].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** What `models` says. */
  async list() {
    return Promise.all((await this.records()).map(async (record) => ({
      id: record.id, name: record.name, architecture: record.architecture, sha256: record.files.model.sha256,
      bytes: record.files.model.bytes + (record.files.factors?.bytes ?? 0),
      factors: Boolean(record.files.factors), problem: null,
      adapters: (await this.adaptersOf(record)).map((adapter) => ({
        name: adapter.name, examples: adapter.examples ?? null, bytes: adapter.data?.size ?? adapter.file.bytes,
        created: adapter.created ?? null, problem: problemOf(adapter, record),
      })),
    })));
  }

  async inspect(id) {
    const record = await this.record(id);
    return describe(await readGguf(await opened(record.files.model)));
  }

  /** Everything that a runtime needs: {id, name, base, factors, adapters (Blobs), adapterIds, header, text}.
   * What is missing is fetched, and each file's header is checked. */
  async open(id, names = [], heard = () => {}) {
    const record = await this.record(id);
    const adapters = await this.chosen(record, names);
    const files = [record.files.model, record.files.factors, ...adapters.map(({ file }) => file)].filter(Boolean);
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
    let here = 0;
    const count = (bytes) => heard(Math.min(1, (here += bytes) / total));
    const base = await opened(record.files.model, count);
    const factors = record.files.factors ? await opened(record.files.factors, count) : null;
    const blobs = [];
    for (const { file, data } of adapters) blobs.push(data ?? await opened(file, count));
    const header = await readGguf(base);
    const text = await this.text(record, header);
    return {
      id, name: record.name, base, factors, adapters: blobs, adapterIds: adapters.map(idOf),
      header: describe(header), text,
    };
  }

  async chosen(record, names) {
    const known = await this.adaptersOf(record);
    return names.map((name) => {
      const found = known.find((adapter) => adapter.name === name);
      if (!found) throw new Problem(`${name}: the model has no such note set`);
      const problem = problemOf(found, record);
      if (problem) throw new Problem(`${name} ${problem}`, "train it again on this model");
      return found;
    });
  }

  async adapterIds(id, names) {
    return (await this.chosen(await this.record(id), names)).map(idOf);
  }

  /** How a model's messages become text and tokens. */
  async text(record, header) {
    const { Template, Tokenizer } = await texts();
    if (!record.text) return textOfGguf(header, Template);
    const about = await fetched(record.text);
    return new Text(about, new Tokenizer(about.tokenizer, about.tokenizer_config), Template);
  }

  /** Keep a model that a person chose: its file, and that of its factors if there are two. The model's id. */
  async importModel(files, heard) {
    const found = await Promise.all(files.map(async (file) => ({ file, header: await readGguf(file) })));
    const isModel = ({ header }) => describe(header).kind === "model";
    const [models, others] = [found.filter(isModel), found.filter((one) => !isModel(one))];
    if (models.length !== 1 || others.length > 1) {
      throw new Problem("choose one model, and its factors if it has any", "base.gguf and factors.gguf of an output folder");
    }
    const total = files.reduce((sum, { size }) => sum + size, 0);
    let here = 0;
    const count = (bytes) => heard((here += bytes) / total);
    const kept = { model: await imported(models[0].file, count), factors: null };
    if (others.length) kept.factors = await imported(others[0].file, count);
    const id = `own-${sha256Text([kept.model.sha256, kept.factors?.sha256].join()).slice(0, 16)}`;
    const about = describe(models[0].header);
    const record = {
      id, name: about.name || models[0].file.name, architecture: about.architecture, files: kept, adapters: [],
      digest: null, base_name: about.name, text: null, training: null,
    };
    await store.put("models", id, record);
    await store.persist();
    return id;
  }

  /** Keep an adapter that a person chose. */
  async importAdapter(id, file) {
    const record = await this.record(id);
    const header = await readGguf(file);
    const about = describe(header);
    if (about.kind !== "adapter") throw new Problem("the file is no adapter", "edgepack finetune writes one, adapter.gguf");
    const isOther = record.digest && about.base_digest !== record.digest;
    if (isOther || !fits(header, await readGguf(await opened(record.files.model)))) {
      throw new Problem("the adapter belongs to another model", "import it to the one it was trained on");
    }
    const name = nameFor(file.name, await this.adaptersOf(record));
    await this.keepAdapter({ model: id, name, data: new Blob([await file.arrayBuffer()]), digest: about.base_digest, examples: null });
  }

  async keepAdapter(adapter) {
    const key = `${adapter.model}/${adapter.name}`;
    await store.put("adapters", key, { created: Date.now() / 1000, ...adapter });
    await this.hide(key, false);
  }

  /** Remove an adapter; without a name the model: an imported one for good, one of the folder from this
   * browser. Adapters of a removed model go too. */
  async remove(id, name) {
    const record = await this.record(id);
    const key = `${id}/${name}`;
    if (name) {
      await store.drop("adapters", key);
      if (record.adapters.some((adapter) => adapter.name === name)) await this.hide(key, true);
      return;
    }
    for (const adapter of await this.adaptersOf(record)) await store.drop("adapters", `${id}/${adapter.name}`);
    if (id.startsWith("own-")) await store.drop("models", id);
    const others = (await this.records()).filter((other) => other.id !== id);
    await store.keepPieces(new Set(others.flatMap(piecesOf)));
  }

  async hide(key, hidden) {
    const known = ((await store.get("models", HIDDEN)) ?? []).filter((other) => other !== key);
    await store.put("models", HIDDEN, hidden ? [...known, key] : known);
  }

  /** An adapter's file, to be handed out. */
  async adapterFile(id, name) {
    const [found] = await this.chosen(await this.record(id), [name]);
    return found.data ?? opened(found.file);
  }
}

async function fetched(path) {
  const answer = await fetch(rooted(path)).catch(() => null);
  if (!answer?.ok) throw new Problem("a part of this page is missing", "open it again while you are connected");
  return answer.json();
}

const idOf = ({ name, created, file }) => `${name}@${created ?? file.sha256}`;

function problemOf(adapter, record) {
  const unknown = record.digest === null; // of two files alone, edgepack's digest is not known
  return unknown || adapter.digest === record.digest ? null : "belongs to another model";
}

/** Whether every pair of an adapter belongs to a matrix of the model, by name and shape. */
function fits(adapter, model) {
  const shapes = new Map(model.tensors.map(({ name, shape }) => [name, shape]));
  return adapter.tensors.every(({ name, shape }) => {
    const [columns, rows] = shapes.get(name.replace(/\.lora_[ab]$/, "")) ?? [];
    return name.endsWith(".lora_a") ? shape[0] === columns : name.endsWith(".lora_b") && shape[1] === rows;
  });
}

function nameFor(file, known) {
  const stem = file.replace(/\.gguf$/i, "").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "notes";
  const names = new Set(known.map(({ name }) => name));
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? stem : `${stem}-${number}`;
    if (!names.has(name)) return name;
  }
}

function piecesOf({ files, adapters, training }) {
  const all = [...Object.values(files), ...adapters.map(({ file }) => file), ...Object.values(training?.files ?? {})];
  return all.filter(Boolean).flatMap(({ pieces }) => pieces);
}
