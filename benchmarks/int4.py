"""Training in INT8 and INT4 (`edgepack.finetune.int4`) beside float32, on CoLA and RTE.

    python -m benchmarks.int4 [--data ../shared/data] [--only WORD] [--seeds 3]

arXiv 2306.11987 fine-tunes BERT. Here two small transformers (2 blocks, width 64) are trained from
scratch on words. What they reach on the tasks is little; the question is what an arithmetic
changes. Models of one seed start from the same weights and see the same batches in every
arithmetic, so differences to float32 are taken seed by seed.

The encoder classifies the mean of its outputs. The decoder predicts every next word, then a word
for the label; its loss is about words and falls far, so it shows more than the labels do. All
layers but embeddings and the last one are converted. Attention's own products stay in float32 (the
paper converts them too). The ablation rounds the forward pass alone, as table 4 of the paper does.
Operators by themselves: `benchmarks.int4_operators`.

A run replaces its own rows in results/int4.json and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks._glue import Example, Task, Transformer, losses, read_task
from benchmarks.same_type import RESULTS
from edgepack.finetune.int4 import convert

BATCH, RATE, WARM_UP = 32, 4e-3, 20
"""Rows of a batch, the highest learning rate, and batches that estimate steps anew."""
STEPS = {("encoder", "CoLA"): 800, ("decoder", "CoLA"): 500}
STEPS |= {("encoder", "RTE"): 240, ("decoder", "RTE"): 240}
"""Of training: three epochs of each task, fewer for the decoder of CoLA."""
ARITHMETICS: dict[str, dict[str, Any]] = {
    "float32": {},
    "INT8": {"quantizer": "lsq", "bits": 8, "gradient": "split"},
    "INT4: HQ + LSS": {"quantizer": "hq", "bits": 4, "gradient": "lss"},
    "LSQ 4": {"quantizer": "lsq", "bits": 4, "gradient": "none"},
}
ABLATION: dict[str, dict[str, Any]] = {
    "INT4: HQ, all rows": {"quantizer": "hq", "bits": 4, "gradient": "split"},
    "LSQ 6": {"quantizer": "lsq", "bits": 6, "gradient": "none"},
    "LSQ 8": {"quantizer": "lsq", "bits": 8, "gradient": "none"},
    "HQ 4": {"quantizer": "hq", "bits": 4, "gradient": "none"},
    "HQ 6": {"quantizer": "hq", "bits": 6, "gradient": "none"},
    "HQ 8": {"quantizer": "hq", "bits": 8, "gradient": "none"},
}
"""Run on the decoder of CoLA only. `LSQ 4` is among the arithmetics."""
CERTAIN = 4.30
"""Standard errors of a mean of three pairs that chance exceeds once in twenty (Student's t, two
degrees of freedom)."""

Row = dict[str, Any]


def batches(examples: list[Example], generator: torch.Generator) -> Iterator[list[Example]]:
    """Shuffled anew in each epoch, without end."""
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for i in range(0, len(order) - BATCH + 1, BATCH):
            yield [examples[j] for j in order[i : i + BATCH]]


def train(task: Task, causal: bool, options: dict[str, Any], seed: int, steps: int) -> Row:
    """One model; what it reached."""
    torch.manual_seed(seed)
    model = Transformer(causal)
    if options:
        convert(model, keep=("head",), seed=1000 * seed, warm_up=WARM_UP, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    source = batches(task.train, torch.Generator().manual_seed(seed))
    curve = []
    start = time.process_time()
    for _, examples in zip(range(steps), source, strict=False):
        loss, _, _ = losses(model, examples)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    seconds = time.process_time() - start
    return {"train": mean(curve[-50:]), "seconds": seconds} | evaluate(model, task.dev)


@torch.no_grad()
def evaluate(model: Transformer, examples: list[Example]) -> dict[str, float]:
    """Loss (mean over batches), accuracy and Matthews correlation."""
    model.eval()
    parts = [losses(model, examples[i : i + BATCH]) for i in range(0, len(examples), BATCH)]
    answers, labels = (torch.cat([p[i] for p in parts]).double() for i in (1, 2))
    a, b = answers - answers.mean(), labels - labels.mean()
    spread = float(a.norm() * b.norm())
    return {
        "dev": mean(float(p[0]) for p in parts),
        "accuracy": float((answers == labels).double().mean()),
        "mcc": float(a @ b) / spread if spread else 0.0,
    }


def shown(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def beyond_chance(values: list[float]) -> bool:
    """Whether three numbers have a mean that is not 0."""
    return len(values) == 3 and abs(mean(values)) > CERTAIN * stdev(values) / math.sqrt(3)


def difference(pairs: list[tuple[Row, Row]], key: str) -> str:
    """Mean of the differences; bold if they are more than chance."""
    values = [row[key] - base[key] for row, base in pairs]
    text = f"{mean(values):+.3f}"
    return f"**{text}**" if beyond_chance(values) else text


def table(rows: list[Row], names: list[str]) -> list[str]:
    """Markdown of one model and task."""
    lines = [
        "| | training loss | − float32 | dev loss | − float32 | accuracy | MCC | − float32 | CPU |",
        "|---|" + "---:|" * 8,
    ]
    base = {row["seed"]: row for row in rows if row["name"] == "float32"}
    for name in names:
        own = [row for row in rows if row["name"] == name and row["seed"] in base]
        if not own:
            continue
        pairs = [(row, base[row["seed"]]) for row in own]
        cells = [name]
        for key in ("train", "dev", "accuracy", "mcc"):
            cells.append(shown([row[key] for row in own]))
            if key != "accuracy":
                cells.append("" if name == "float32" else difference(pairs, key))
        ratio = math.exp(mean(math.log(a["seconds"] / b["seconds"]) for a, b in pairs))
        lines.append("| " + " | ".join([*cells, f"×{ratio:.1f}"]) + " |")
    return lines


def report(rows: list[Row], tasks: dict[str, Task]) -> str:
    """The page: a table for each model and task, and how far the labels were learned."""
    lines = [
        "Means over three seeds, ± standard deviation. Differences to float32 are taken seed by",
        "seed, and bold if chance gives them less than once in twenty. Processor time of training",
        "is of the simulation, so it says nothing of INT4 on a device: see `int4_operators.md`.",
    ]
    for (model, task), steps in STEPS.items():
        own = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        base = [row for row in own if row["name"] == "float32"]
        if not base:
            continue
        lines += ["", f"## {model}, {task}, {steps} steps", ""]
        lines += [*table(own, [*ARITHMETICS, *ABLATION]), "", *labels(base, tasks[task].majority)]
    return "\n".join(lines) + "\n"


def labels(base: list[Row], majority: float) -> list[str]:
    """How far float32 learned them, which is what accuracy and MCC of the others can show."""
    lines = [f"Always the more frequent label: accuracy {majority:.3f}, MCC 0."]
    if not beyond_chance([row["mcc"] for row in base]):
        lines += [
            "float32 does not learn the labels beyond chance, so accuracy and MCC of the others",
            "say nothing. Only the losses do.",
        ]
    elif mean(row["accuracy"] for row in base) <= majority:
        lines += [
            "float32 learns a little (MCC is not 0), but its accuracy is not above that. Losses",
            "show more than accuracy and MCC.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="models, tasks, arithmetics with this word")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {name: read_task(name, options.data) for name in ("CoLA", "RTE")}
    path = RESULTS / "int4.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    for (model, task), steps in STEPS.items():
        more = ABLATION if (model, task) == ("decoder", "CoLA") else {}
        for name, setting in (ARITHMETICS | more).items():
            if options.only not in f"{model} {task} {name}":
                continue
            for seed in range(options.seeds):
                about = {"model": model, "task": task, "name": name, "seed": seed}
                result = train(tasks[task], model == "decoder", setting, seed, steps)
                rows = [row for row in rows if any(row[key] != about[key] for key in about)]
                rows.append(about | result)
                print(rows[-1], flush=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "int4.md").write_text(report(rows, tasks))


if __name__ == "__main__":
    main()
