// The steps of a training: the graph of `edgepack export-training` in onnxruntime-web.

import { fastThreads } from "./features.js";
import { field } from "./fields.js";
import { opened } from "./files.js";
import { writeAdapter } from "./gguf-writer.js";
import { rooted } from "./place.js";
import { Problem } from "./problem.js";
import { placeOf, rate } from "./schedule.js";
import * as store from "./store.js";
import { ort as ortModule, ORT } from "./vendor.js";

const STATE = ["theta", "m", "v"];
const IGNORED = -100;
const SAVE_EVERY = 15; // seconds

/** Make the steps that are left, then keep the adapter; the event `ended`. `job.cancelled` stops it. */
export async function train(work, job, tell, memory) {
  const { steps, options, examples, key } = work;
  const graph = await load(work);
  const state = work.state ?? await first(work);
  const replay = await replayed(work);
  let saved = performance.now();
  while (state.losses.length < steps && !job.cancelled) {
    const step = state.losses.length;
    const start = performance.now();
    const share = options.learning_rate * rate(step, steps, options.warmup_ratio);
    const example = examples[placeOf(step, examples.length, options.seed)];
    const found = await update(graph, state, example, share);
    const again = await goOnKnowing(graph, state, replay, share, options, step);
    const seconds = (performance.now() - start) / 1000;
    state.losses.push(found.loss);
    state.tokens += example.ids.length + again.tokens;
    state.seconds += seconds;
    state.memory = memory().peak;
    tell({
      event: "step", step: step + 1, steps, loss: found.loss, replay_loss: again.loss, gradient_norm: found.norm,
      tokens_per_second: state.tokens / state.seconds,
      seconds_left: (state.seconds / state.losses.length) * (steps - step - 1), memory: memory(),
    });
    if ((performance.now() - saved) / 1000 > SAVE_EVERY) saved = await save(key, state, tell);
    await new Promise((resolve) => setTimeout(resolve)); // wasm blocks the worker: let it hear of a `cancel`
  }
  if (state.losses.length < steps) {
    await save(key, state, tell);
    return ended("cancelled", work, state, memory());
  }
  await keep(work, state);
  return ended("steps", work, state, memory());
}

async function load({ request, training }) {
  const ort = await ortModule();
  ort.env.wasm.wasmPaths = ORT;
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? field(request, "threads", "count", 0) || fastThreads() : 1;
  ort.env.logLevel = "error";
  const bytes = async (file) => new Uint8Array(await (await opened(file)).arrayBuffer());
  const externalData = [];
  for (const name of training.data) externalData.push({ path: name, data: await bytes(training.files[name]) });
  const graph = await bytes(training.files.graph);
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
  return { ort, session, training };
}

async function first({ training, run }) {
  const theta = new Float32Array(await (await opened(training.files.theta)).arrayBuffer());
  if (theta.length !== training.size) throw new Problem("the training graph's first values are not whole");
  const { size } = training;
  return { run, theta, m: new Float32Array(size), v: new Float32Array(size), updates: 0, replays: 0, losses: [], tokens: 0, seconds: 0 };
}

/** One update of what is trained by one example. */
async function update({ ort, session, training }, state, { ids, labels }, learningRate) {
  const { length, batch, size } = training;
  const shape = [batch, length];
  const padded = (values, rest) => {
    const all = new BigInt64Array(batch * length).fill(BigInt(rest));
    values.forEach((value, place) => { all[place] = BigInt(value); });
    return new ort.Tensor("int64", all, shape);
  };
  const number = (value) => new ort.Tensor("float32", Float32Array.of(value), []);
  const feed = { input_ids: padded(ids, 0), labels: padded(labels, IGNORED), lr: number(learningRate), step: number(state.updates + 1) };
  for (const name of STATE) feed[name] = new ort.Tensor("float32", state[name], [size]);
  const found = await session.run(feed);
  const [loss, norm] = [found.loss.data[0], found.gradient_norm.data[0]];
  if (!Number.isFinite(loss) || !Number.isFinite(norm)) {
    throw new Problem(`the loss of step ${state.losses.length + 1} is not finite`, "choose a smaller learning rate");
  }
  for (const name of STATE) state[name] = found[`${name}_out`].data;
  state.updates += 1;
  return { loss, norm };
}

/** Text that the model wrote itself, learnt beside the examples: in the mean, the gradient of its
 * cross-entropy is that of the KL to the untuned model. */
async function replayed({ training, length }) {
  if (!training.replay) return [];
  const rows = await (await fetch(rooted(training.replay))).json();
  return rows.map((row) => ({ ids: row.slice(0, -1).slice(0, length), labels: row.slice(1).slice(0, length) }));
}

/** As many updates by replayed text as `replay` asks for: 0.5 is one for every second step. */
async function goOnKnowing(graph, state, replay, learningRate, options, step) {
  const due = replay.length ? Math.floor((step + 1) * options.replay) : 0;
  const found = { loss: null, tokens: 0 };
  while (state.replays < due) {
    const row = replay[placeOf(state.replays, replay.length, options.seed + 1)];
    found.loss = (await update(graph, state, row, learningRate)).loss;
    found.tokens += row.ids.length;
    state.replays += 1;
  }
  return found;
}

async function save(key, state, tell) {
  await store.put("states", key, state);
  tell({ event: "saved", step: state.losses.length });
  return performance.now();
}

/** The adapter's file, and the end of the job. */
async function keep({ models, record, request, training, key, examples }, state) {
  const file = writeAdapter({
    architecture: record.architecture, name: training.name, theta: state.theta,
    marks: { "edgepack.base.name": record.base_name, "edgepack.base.digest": record.digest },
    parameters: training.parameters.map((parameter) => ({ ...parameter, rows: training.rows[parameter.rows] ?? null })),
  });
  await models.keepAdapter({
    model: record.id, name: request.adapter, digest: record.digest, examples: examples.length, data: new Blob([file]),
  });
  await store.drop("states", key);
  await store.drop("jobs", key);
}

function ended(reason, { training }, state, memory) {
  return {
    event: "ended", reason, steps: state.losses.length, losses: state.losses, parameters: training.size,
    tokens_per_second: state.seconds ? state.tokens / state.seconds : 0, seconds: state.seconds, memory,
  };
}
