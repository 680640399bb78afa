"""Fine-tuning on WikiSQL: edgepack's two modes beside LoRA on the unpacked model and QLoRA.

    python -m benchmarks.finetune_quality DIR --data ../shared/data [--python QLORA_PYTHON]

DIR is an output folder (GGUF, with factors) of SmolLM2-135M-Instruct. `QLORA_PYTHON` is the
interpreter of an environment with torch, transformers, peft and bitsandbytes; without it, that row
is missing. All rows see the same tokens in the same batches, with the same rank, rates and
clipping; LoRA and QLoRA run in PEFT with gradient checkpointing, in batches of `--micro-batch`
examples. Question to SQL through the chat template, answers only.

`valid`: the answer is SELECT … FROM … WHERE … over the table and the columns of the question.
`exact`: it is the expected text. Ours are answered by llama.cpp, the others by transformers, always
the likeliest token. Peak memory is that of the training process, mapped files included. Rows that
are not run again keep the figures of an earlier run. `--speed-only` measures peak and tokens per
second again and keeps the rest: for those few rows are enough (`--train 80 --test 1`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.same_type import MODEL, RESULTS
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.save import save
from edgepack.checkpoint.special import ends
from edgepack.core.progress import finish
from edgepack.finetune.examples import IGNORED, Example, read_examples
from edgepack.recover.adam import schedule
from edgepack.recover.training import order
from edgepack.runtimes.models import Model

PAGE, KEPT = RESULTS / "finetune_quality.md", RESULTS / "finetune_quality.json"
SPEED = ("peak", "tokens_per_second")
COLUMNS = ("loss", "valid", "exact", *SPEED)
BATCH, RANK, ALPHA, RATE, CLIP, WARM_UP = 8, 8, 16, 1e-3, 1.0, 0.05
MAX_TOKENS = 64
SQL = re.compile(
    r"SELECT (?:(?:MAX|MIN|COUNT|SUM|AVG) )?(?P<column>.+?) FROM (?P<table>\S+)"
    r"(?: WHERE (?P<where>.+))?"
)


def rows(path: Path, count: int) -> list[dict[str, str]]:
    """Questions and answers of the file's first rows, beside the whole prompt."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        prompt, _, answer = json.loads(line)["text"].rpartition("\nA: ")
        found.append({"prompt": prompt, "completion": answer.strip()})
    return found


def is_valid(answer: str, prompt: str) -> bool:
    """Whether an answer is SQL over the question's table and columns."""
    fields = dict(line.split(": ", 1) for line in prompt.split("\n") if ": " in line)
    columns = {name.strip() for name in fields.get("columns", "").split(",")}
    found = SQL.fullmatch(answer.strip())
    if found is None or found["column"] not in columns or found["table"] != fields.get("table"):
        return False
    parts = re.split(r" AND ", found["where"]) if found["where"] else []
    conditions = (re.fullmatch(r"(.+?) (?:=|>|<) (.+)", part) for part in parts)
    return all(match is not None and match[1] in columns for match in conditions)


def prompt_of(example: Example) -> list[int]:
    """The tokens before the answer."""
    first = int((example.labels != IGNORED).nonzero()[0]) + 1
    found: list[int] = example.ids[:first].tolist()
    return found


class Task:
    """The tokens of both splits, and what the test's answers are worth."""

    def __init__(self, base: PackedBase, data: Path, train: int, test: int, place: Path) -> None:
        folder = data / "finetune" / "wikisql"
        self.asked = rows(folder / "test.jsonl", test)
        self.files = {"train": place / "train.jsonl", "test": place / "test.jsonl"}
        self._write(self.files["train"], rows(folder / "train.jsonl", train))
        self._write(self.files["test"], self.asked)
        self.train, self.test = (
            read_examples(path, base.checkpoint, 512).examples for path in self.files.values()
        )
        self.tokenizer = base.checkpoint.tokenizer
        self.steps = len(self.train) // BATCH

    @staticmethod
    def _write(path: Path, found: list[dict[str, str]]) -> None:
        path.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")

    def worth(self, answers: list[list[int]]) -> dict[str, float]:
        """Shares of valid and of exact answers."""
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        asked = list(zip(texts, self.asked, strict=True))
        return {
            "valid": sum(is_valid(text, row["prompt"]) for text, row in asked) / len(asked),
            "exact": sum(text == row["completion"] for text, row in asked) / len(asked),
        }


def through_llama(task: Task, model: Model) -> dict[str, Any]:
    """Loss and answers of a packed model with its adapter."""
    total, count, answers = 0.0, 0, []
    with model.open(1024) as runtime:
        for example in task.test:
            logits = torch.from_numpy(runtime.logits(example.ids.tolist()))
            places = example.labels != IGNORED
            nats = torch.nn.functional.cross_entropy(
                logits[places], example.labels[places], reduction="sum"
            )
            total, count = total + float(nats), count + int(places.sum())
            answers.append(list(runtime.generate(prompt_of(example), MAX_TOKENS)))
    return {"loss": total / count, **task.worth(answers)}


def ours(task: Task, base: PackedBase, row: str) -> dict[str, Any]:
    """Train by the command, in a process of its own; a row is a mode, maybe with an arithmetic."""
    mode, _, arithmetic = row.partition(":")
    name = f"wikisql-{row.replace(':', '-')}"
    command = [sys.executable, "-m", "edgepack", "finetune", str(base.folder), "--json", "--force"]
    command += ["--data", str(task.files["train"]), "--name", name, "--mode", mode]
    command += ["--rank", str(RANK), "--learning-rate", str(RATE), "--batch-size", str(BATCH)]
    command += ["--steps", str(task.steps), "--set", "held_out=0", "--set", f"clip={CLIP}"]
    command += ["--set", f"lora_alpha={ALPHA}", "--replay", "0"]
    command += ["--set", f"arithmetic={arithmetic or 'float32'}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    adapter = base.folder / "adapters" / name / "adapter.gguf"
    found = through_llama(task, Model(name, base.file, base.factors, ((adapter, 1.0),)))
    speed = {"tokens_per_second": result["tokens_per_second"], "peak": result["peak_memory"]}
    return found | speed


def theirs(task: Task, python: str, nf4: bool, micro_batch: int, place: Path) -> dict[str, Any]:
    """Train with PEFT, in another Python."""
    folder = place / "unpacked"
    checkpoint = open_checkpoint(MODEL)
    if not folder.exists():
        folder.mkdir()
        finish(save(checkpoint, checkpoint.tensor, folder, "benchmark"))
    plain = [(e.ids.tolist(), e.labels.tolist()) for e in task.train]
    orders = (order(len(plain), BATCH, 0, step).tolist() for step in range(task.steps))
    batches = [[plain[i] for i in places] for places in orders]
    job = {
        "model": str(folder),
        "nf4": nf4,
        "r": RANK,
        "lora_alpha": ALPHA,
        "learning_rate": RATE,
        "clip": CLIP,
        "micro_batch": micro_batch,
        "batches": batches,
        "rates": [schedule(step, task.steps, WARM_UP) for step in range(task.steps)],
        "test": [(e.ids.tolist(), e.labels.tolist()) for e in task.test],
        "prompts": [prompt_of(example) for example in task.test],
        "max_tokens": MAX_TOKENS,
        "ends": list(ends(checkpoint.tokenizer, checkpoint.generation_config())),
    }
    (place / "job.json").write_text(json.dumps(job))
    worker = Path(__file__).with_name("_peft_worker.py")
    subprocess.run(
        [python, "-P", str(worker), str(place / "job.json"), str(place / "result.json")], check=True
    )
    found = json.loads((place / "result.json").read_text())
    return found | task.worth(found["answers"])


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{found['loss']:.4f}", f"{found['valid']:.0%}", f"{found['exact']:.0%}"]
    if "peak" in found:
        cells += [f"{found['peak'] / 1e6:,.0f} MB", f"{found['tokens_per_second']:.0f}"]
    else:
        cells += ["–", "–"]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--python")
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rows", default="untuned,stack,stack:bfloat16,factors,lora,qlora")
    parser.add_argument("--speed-only", action="store_true")
    given = parser.parse_args()
    base, wanted = PackedBase.open(given.folder), given.rows.split(",")
    known: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}

    def add(name: str, found: dict[str, Any]) -> None:
        columns = SPEED if given.speed_only else COLUMNS
        known[name] = known.get(name, {}) | {key: found[key] for key in columns if key in found}
        print(line(name, found), flush=True)
        KEPT.write_text(json.dumps(known, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        task = Task(base, given.data, given.train, given.test, place)
        untuned = Model("untuned", base.file, base.factors)
        if "untuned" in wanted:
            add("packed, untuned", through_llama(task, untuned))
        for row in (row for row in wanted if row.startswith(("stack", "factors"))):
            add(f"edgepack `{row}`", ours(task, base, row))
        if "lora" in wanted:
            found = theirs(task, sys.executable, False, given.micro_batch, place)
            add("LoRA on the unpacked model, float32 (PEFT)", found)
        if "qlora" in wanted and given.python:
            found = theirs(task, given.python, True, given.micro_batch, place)
            add("QLoRA, NF4 (PEFT, bitsandbytes)", found)
    lines = ["| | test loss | valid SQL | exact | peak memory | tokens/s |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    lines += [line(name, found) for name, found in known.items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
