"""The two tasks of `merge_skills`, and how a model does in them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune_quality import MAX_TOKENS, is_valid, prompt_of, rows
from benchmarks.same_type import MODEL
from edgepack.checkpoint import open_checkpoint
from edgepack.finetune.examples import IGNORED, Example, read_examples
from edgepack.runtimes.llama_cpp import LlamaCpp

PARTS = ("train", "valid", "test")
SQL, COLA = "sql", "cola"
LABELS = {"0": "unacceptable", "1": "acceptable"}
QUESTION = "Is this sentence acceptable English? Answer acceptable or unacceptable.\n{}"
LENGTH = 512

Row = dict[str, str]


class Task:
    """Rows of a task: train, valid, test; files of them that edgepack reads."""

    def __init__(self, name: str, parts: Mapping[str, list[Row]], folder: Path) -> None:
        self.name, self.parts = name, parts
        self.files = {part: folder / f"{name}-{part}.jsonl" for part in parts}
        for part, found in parts.items():
            self.files[part].write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
        checkpoint = open_checkpoint(MODEL)
        self.tokenizer = checkpoint.tokenizer
        self.examples = {
            part: read_examples(self.files[part], checkpoint, LENGTH).examples
            for part in ("valid", "test")
        }

    def worth(self, answer: str, row: Row) -> dict[str, float]:
        """Whether an answer has the form that was asked for, and whether it is right."""
        form = is_valid(answer, row["prompt"]) if self.name == SQL else answer in LABELS.values()
        return {"valid": float(form), "right": float(answer == row["completion"])}


def sql_task(data: Path, counts: Mapping[str, int], folder: Path) -> Task:
    """WikiSQL; `counts` are the rows of each part, `folder` is where its files go."""
    source = data / "finetune" / "wikisql"
    parts = {part: rows(source / f"{part}.jsonl", count) for part, count in counts.items()}
    return Task(SQL, parts, folder)


def cola_task(data: Path, counts: Mapping[str, int], folder: Path) -> Task:
    """CoLA with as many rows of either label; validation and test are parts of its dev set."""
    source, valid = data / "finetune" / "cola", counts["valid"]
    train = _balanced(source / "in_domain_train.tsv", counts["train"])
    dev = _balanced(source / "in_domain_dev.tsv", valid + counts["test"])
    return Task(COLA, {"train": train, "valid": dev[:valid], "test": dev[valid:]}, folder)


def _balanced(path: Path, count: int) -> list[Row]:
    """Rows with both labels in turn, in a fixed random order."""
    found: dict[str, list[Row]] = {label: [] for label in LABELS}
    for line in path.read_text("utf-8").split("\n"):
        if line:
            _, label, _, sentence = line.split("\t")
            row = {"prompt": QUESTION.format(sentence), "completion": LABELS[label]}
            found[label].append(row)
    for each in found.values():
        random.Random(0).shuffle(each)
    return [row for pair in zip(*found.values(), strict=False) for row in pair][:count]


def losses(runtime: Any, examples: Sequence[Example]) -> list[float]:
    """Nats a token of every answer."""
    found = []
    for example in examples:
        logits = torch.as_tensor(runtime.logits(example.ids.tolist()))
        places = example.labels != IGNORED
        nats = torch.nn.functional.cross_entropy(logits[places], example.labels[places])
        found.append(float(nats))
    return found


def tested(file: Path, tasks: Sequence[Task], threads: int | None) -> dict[str, dict[str, Any]]:
    """A packed model on the test rows of all tasks, in llama.cpp."""
    found: dict[str, dict[str, Any]] = {}
    with LlamaCpp(file, None, context=1024, threads=threads) as runtime:
        for task in tasks:
            examples = task.examples["test"]
            worths = []
            for example, row in zip(examples, task.parts["test"], strict=True):
                ids = list(runtime.generate(prompt_of(example), MAX_TOKENS))
                text = task.tokenizer.decode(ids, skip_special_tokens=True).strip()
                worths.append(task.worth(text, row))
            found[task.name] = {
                "losses": losses(runtime, examples),
                "valid": [worth["valid"] for worth in worths],
                "right": [worth["right"] for worth in worths],
            }
    return found
