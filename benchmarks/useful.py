"""Is closer to the original also more useful? Accuracy and followed instructions beside KL.

    python -m benchmarks.useful MODEL… [--limit 300] [--shared ../shared]

A model is an output folder or a .gguf file of SmolLM2-135M-Instruct. PIQA and ARC-easy, `--limit`
items of each, and COPA's 100, prompted and scored as lm-evaluation-harness does; and the prompts of
`instructions.jsonl` in the chat template, each with the pattern of a right answer (facts,
arithmetic, counts, forms; greedy, at most 64 tokens). KL on the first 6 × 512 tokens of
WikiText-2's test split. Errors are standard errors; `to the original` is a mean of differences on
the same items.

All run as float16 copies of what the files decode to, because llama.cpp has no fast code for q2_0
on x86: weights are the file's, only its kernels' rounding of activations is not there. The size is
the file's own. A run replaces the rows of its models and keeps the others; the answers are in
useful.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import edgepack
from benchmarks.same_type import MODEL, RESULTS
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.core.tables import format_size
from edgepack.export.gguf import write_plain
from edgepack.metrics.multiple_choice import Mean
from edgepack.runtimes.chat import chat
from edgepack.runtimes.models import Model

TASKS = ("piqa", "arc_easy", "copa")
PROMPTS = [
    json.loads(line)
    for line in Path(__file__).with_name("instructions.jsonl").read_text("utf-8").splitlines()
]
ORIGINAL = "original"
LONGEST, CONTEXT = 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "useful.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        copies = {ORIGINAL: Path(folder) / "original.gguf"}
        write_plain(copies[ORIGINAL], open_checkpoint(MODEL))
        for path in options.models:
            copies[path.stem] = Path(folder) / f"{path.stem}.gguf"
            decode(path, copies[path.stem])
        sizes = {path.stem: Model.from_path(path).bytes for path in options.models}
        sizes[ORIGINAL] = copies[ORIGINAL].stat().st_size
        found = scores(copies, options.limit, options.shared / "data")
        for name, copy in copies.items():
            rows[name] = {"bytes": sizes[name], **found[str(copy)], "answers": answers(copy)}
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "useful.md").write_text(table(rows) + "\n")
    print(table(rows))


class Decoded(GgufCheckpoint):
    """A packed GGUF with Q + L·R as its matrices."""

    def __init__(self, folder: Path) -> None:
        self.packed = PackedBase.open(folder)
        super().__init__(self.packed.file, self.packed.name)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        weight = self.packed.weight(name) if name in self.packed.ranks else None
        return super().tensor(name) if weight is None else weight.dense()


def decode(path: Path, to: Path) -> None:
    """Write a model's float16 copy."""
    write_plain(to, Decoded(path) if path.is_dir() else open_checkpoint(str(path)))


def scores(copies: dict[str, Path], limit: int, data: Path) -> dict[str, Any]:
    """What `edgepack evaluate` finds, by path."""
    original, *others = copies.values()
    board = edgepack.evaluate(
        others[0],
        against=others[1:],
        reference=original,
        text=data / "text/wikitext2-raw/wiki.test.raw",
        tokens=3072,
        tasks=TASKS,
        data=data / "zeroshot",
        limit=limit,
    )
    found: dict[str, Any] = board.as_dict()["models"]
    for name, tasks in board.answers.items():
        usual = {task: one.usual for task, one in tasks.items()}
        first = {task: one.usual for task, one in board.answers[board.baseline].items()}
        apart = [Mean.from_items(usual[task] - first[task]) for task in usual]
        found[name]["mean"] = vars(Mean.average(list(map(Mean.from_items, usual.values()))))
        found[name]["apart"] = vars(Mean.average(apart))
    return found


def answers(path: Path) -> list[str]:
    """The answer to every prompt."""
    with Model.from_path(path).open(CONTEXT) as runtime:
        asked = ([{"role": "user", "content": row["prompt"]}] for row in PROMPTS)
        return ["".join(chat(runtime, messages, LONGEST)).strip() for messages in asked]


def right(found: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 for every answer that has the pattern of a right one."""
    pairs = zip(PROMPTS, found, strict=True)
    return np.array([float(bool(re.search(row["pattern"], said))) for row, said in pairs])


def table(rows: dict[str, Any]) -> str:
    """Markdown, from the file of least KL to that of most."""
    kinds = list(dict.fromkeys(row["kind"] for row in PROMPTS))
    counts = {kind: sum(row["kind"] == kind for row in PROMPTS) for kind in kinds}
    head = ["model", "MB", "mean KL", *TASKS, "mean", "to the original"]
    head += [f"{kind} ({counts[kind]})" for kind in kinds] + ["all prompts", "to the original"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    first = right(rows[ORIGINAL]["answers"])
    for name, row in sorted(rows.items(), key=lambda r: kl(r[1])):
        cells = [name, format_size(row["bytes"]).removesuffix(" MB"), f"{kl(row):.3f}"]
        tasks = [row["tasks"][task] for task in TASKS]
        cells += [f"{100 * task.get('acc_norm', task['acc']):.1f}" for task in tasks]
        cells += [percent(Mean(**row["mean"])), percent(Mean(**row["apart"]), "+")]
        own = right(row["answers"])
        of = {k: [v for r, v in zip(PROMPTS, own, strict=True) if r["kind"] == k] for k in kinds}
        cells += [f"{sum(of[kind]):.0f}" for kind in kinds]
        cells += [percent(Mean.from_items(own)), percent(Mean.from_items(own - first), "+")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kl(row: dict[str, Any]) -> float:
    """0 for the original, which has none."""
    return float(row.get("text", {}).get("kl_mean", 0.0))


def percent(mean: Mean, sign: str = "") -> str:
    """A share with its error, in %."""
    return f"{100 * mean.value:{sign}.1f} ± {100 * mean.error:.1f}"


if __name__ == "__main__":
    main()
