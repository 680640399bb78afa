// Answers requests to `app`: what the host can do, models, files that come and go, trainings begun.

import { cannotChat, cannotKeep } from "./features.js";
import { field } from "./fields.js";
import { Problem } from "./problem.js";
import * as store from "./store.js";

const VERSION = 1;

class Stopped extends Error {}

export class App {
  /** `tune` tells which training runs. */
  constructor(models, tune) {
    this.store = models;
    this.tune = tune;
    this.stopped = new Set(); // ids of imports that were stopped
  }

  async request(request, tell) {
    if (request.do === "cancel") {
      this.stopped.add(request.request);
      return tell({ event: "done" });
    }
    const acts = ["hello", "models", "import", "remove", "share", "jobs", "forget", "device"];
    if (!acts.includes(request.do)) throw new Problem(`${request.do}: the page in a browser does not know this`);
    tell(await this[request.do](request, tell));
  }

  async hello() {
    const keeps = cannotKeep();
    const why = keeps ?? cannotChat();
    const can = why ? why.message : true;
    return {
      event: "hello", host: "browser", version: VERSION,
      can: { tune: can, bench: can, import: keeps ? keeps.message : true, share: true },
      device: { name: browserName(), cores: navigator.hardwareConcurrency ?? 1, memory: navigator.deviceMemory ? navigator.deviceMemory * 2 ** 30 : null },
      isolated: Boolean(globalThis.crossOriginIsolated),
    };
  }

  async models(request) {
    return { event: "models", models: await this.store.list() };
  }

  async import(request, tell) {
    const kind = field(request, "kind", "text");
    const files = await chosen(kind === "model");
    if (!files.length) return { event: "cancelled" };
    const label = files.map(({ name }) => name).join(", ");
    const heard = (share) => {
      if (this.stopped.has(request.id)) throw new Stopped();
      tell({ event: "progress", share: Math.min(1, share), label });
    };
    try {
      return await this.kept(kind, files, request, heard);
    } catch (error) {
      if (error instanceof Stopped) return { event: "cancelled" };
      throw error;
    }
  }

  async kept(kind, files, request, heard) {
    heard(0);
    if (kind === "model") return { event: "imported", model: await this.store.importModel(files, heard) };
    const model = field(request, "model", "text");
    await this.store.importAdapter(model, files[0]);
    return { event: "imported", model };
  }

  async remove(request) {
    await this.store.remove(field(request, "model", "text"), field(request, "adapter", "text", null));
    return { event: "removed" };
  }

  async share(request) {
    const [model, adapter] = [field(request, "model", "text"), field(request, "adapter", "text")];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await this.store.adapterFile(model, adapter));
    link.download = `${adapter}.gguf`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return { event: "shared" };
  }

  async jobs() {
    const running = this.tune.training?.key;
    const jobs = await store.all("jobs");
    return { event: "jobs", jobs: jobs.map((job) => ({ ...job, running: `${job.model}/${job.adapter}` === running })) };
  }

  async forget(request) {
    const key = `${field(request, "model", "text")}/${field(request, "adapter", "text")}`;
    await store.drop("jobs", key);
    await store.drop("states", key);
    return { event: "forgotten" };
  }

  async device() {
    const battery = await navigator.getBattery?.().catch(() => null);
    return {
      event: "device", battery: battery?.level ?? null, charging: battery?.charging ?? null, thermal: null, memory_free: null,
    };
  }
}

function browserName() {
  const brand = navigator.userAgentData?.brands?.find(({ brand: name }) => !/Not|Chromium/.test(name)) ?? navigator.userAgentData?.brands?.find(({ brand: name }) => name === "Chromium");
  if (brand) return `${brand.brand} ${brand.version}`;
  return /(Firefox|Version|Chrome)\/[\d.]+/.exec(navigator.userAgent)?.[0].replace("Version", "Safari").replace("/", " ") ?? "a browser";
}

/** Files that a person chooses; none if they change their mind. */
function chosen(multiple) {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "file", multiple, hidden: true });
    const finish = () => { resolve([...input.files]); input.remove(); };
    input.addEventListener("change", finish);
    input.addEventListener("cancel", finish);
    document.body.append(input);
    input.click();
  });
}
