// What a training will do: its examples as tokens, its steps, and the state it goes on from.

import { readExamples } from "./examples.js";
import { field } from "./fields.js";
import { opened } from "./files.js";
import { readGguf } from "./gguf.js";
import { Models } from "./models.js";
import { Problem } from "./problem.js";
import { sha256Text } from "./sha256.js";
import * as store from "./store.js";
import { keyOf } from "./tune.js";

// a recipe's section `finetune` has the same defaults
const DEFAULTS = {
  learning_rate: 1e-3, warmup_ratio: 0.05, epochs: 3, batch_size: 4, sequence_length: 512, replay: 0.5,
  skip_bad_rows: false, seed: 0,
};
const MOST_STEPS = 100000;

/** Everything that training needs, from a request. */
export async function prepared(request) {
  const models = new Models();
  const record = await models.record(field(request, "model", "text"));
  const { training } = record;
  if (!training) throw new Problem("this model can chat here but not learn", "its folder needs a training graph: edgepack demo --web writes it");
  const options = optionsOf(request, training);
  const header = await readGguf(await opened(record.files.model));
  const text = await models.text(record, header);
  const length = Math.min(training.length, options.sequence_length);
  const found = readExamples(field(request, "examples", "list"), text, length, options.skip_bad_rows);
  const steps = options.steps ?? Math.ceil((options.epochs * found.examples.length) / Math.min(options.batch_size, found.examples.length));
  if (steps > MOST_STEPS) throw new Problem("these are too many steps for a browser", "fewer epochs, or fewer examples");
  const key = keyOf(request);
  const run = await sha256Text(JSON.stringify([record.digest, training.files.theta.sha256, found.examples, options, steps]));
  const state = await store.get("states", key);
  if (state && state.run !== run) {
    throw new Problem("another training of this name was begun and not ended", "go on with it, remove it, or choose another name");
  }
  return { request, models, record, training, options, steps, length, key, run, state, ...found };
}

function optionsOf(request, training) {
  const given = field(request, "options", "object", {});
  const options = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    if (key === "skip_bad_rows") options[key] = field(given, key, "bool", DEFAULTS[key]);
    else options[key] = field(given, key, "number", DEFAULTS[key]);
  }
  options.steps = field(given, "steps", "count", null);
  const mode = field(request, "mode", "text", training.mode);
  if (mode !== training.mode) throw new Problem(`the page can only train as ${training.mode} here`);
  if (given.r !== undefined && given.r !== training.rank) throw new Problem(`the page trains rank ${training.rank} here, not ${given.r}`);
  if (!(options.epochs >= 1 && options.batch_size >= 1 && options.learning_rate > 0)) {
    throw new Problem("epochs and batch_size should be at least 1, learning_rate above 0");
  }
  return options;
}

/** The event `planned`. Memory is what the last training of this model took, null before the first. */
export function planned({ examples, skipped, steps, training, state }) {
  const sum = (of) => examples.reduce((total, example) => total + of(example), 0);
  return {
    event: "planned", examples: examples.length, skipped, steps, parameters: training.size,
    answer_tokens: sum(({ answers }) => answers), tokens: sum(({ ids }) => ids.length), memory: state?.memory ?? null,
    resumed_at: state?.losses.length ?? 0,
  };
}
