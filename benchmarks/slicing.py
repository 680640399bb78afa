"""Slicing: one rotation against SliceGPT's rotation per place, before and after fine-tuning.

    python -m benchmarks.slicing [--rows global:512,per_block:512,…] [--shared ../shared]

SmolLM2-135M-Instruct (576 columns, a tied head), in float32 through our own forward pass. A row is
METHOD:WIDTH, with ``:raw`` or ``:normalized`` for another covariance than the method's own,
``:alpaca`` for calibration on Alpaca, ``:rft`` for 100 steps of 1,024 tokens of recovery
fine-tuning on the calibration tokens. Calibrated on 12 × 512 tokens of WikiText-2's validation
split (or as many of Alpaca's answers), 48 × 512 for fine-tuning; perplexity on the first 8 × 512
tokens of its test split, every position; accuracy is the mean over PIQA, HellaSwag, WinoGrande and
ARC-easy, `--limit` items of each (0: none). Weights count everything that is stored: embeddings,
head, shortcuts. A run replaces its own rows in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.same_type import MODEL, RESULTS
from edgepack.check.stage import Check
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.metrics.divergence import chunk, log_probabilities
from edgepack.metrics.multiple_choice import SEQUENCES, Mean, answer
from edgepack.metrics.tasks import load_all
from edgepack.model.decoder import Decoder
from edgepack.pipeline import make_plan, run
from edgepack.recipe.read import parse
from edgepack.recover.sliced import FineTune
from edgepack.runtimes.torch_decoder import TorchDecoder
from edgepack.slicing.stage import Slice

TASKS = ("piqa", "hellaswag", "winogrande", "arc_easy")
WIDTHS = (520, 512, 464, 432, 400)  # 10, 11, 20, 25 and 30 % of 576, to the nearest 8
ROWS = "dense," + ",".join(
    f"{method}:{width}" for width in WIDTHS for method in ("global", "per_block")
)
ROWS += ",global:512:raw,global:432:raw,per_block:512:normalized,per_block:432:normalized"
ROWS += ",global:512:alpaca,per_block:512:alpaca,global:512:rft,per_block:512:rft"


def recipe(row: str, shared: Path, alpaca: Path) -> dict[str, Any]:
    """The recipe of a row."""
    method, width, *more = row.split(":")
    sliced: dict[str, Any] = {"method": method, "width": int(width), "allow_growth": True}
    for kind in {"raw", "normalized"} & set(more):
        sliced["covariance"] = kind
    if "rft" in more:
        sliced["recover"] = {"steps": 100}
    text = alpaca if "alpaca" in more else shared / "data/text/wikitext2-raw/wiki.valid.raw"
    tokens = 24576 if "rft" in more else 6144
    return {
        "model": MODEL,
        "slice": sliced,
        "calibrate": {"source": str(text), "tokens": tokens},
        "export": {"measure": {"tokens": 0}},
    }


def sliced(given: dict[str, Any]) -> Checkpoint:
    """The model of a recipe, sliced and perhaps fine-tuned; from the cache if that was done."""
    plan = make_plan(parse(given), "checkpoint", Path())
    last = FineTune if plan.find(FineTune) else Slice
    finish(run(plan, until=last.name))
    return plan.model


def measured(decoder: Decoder, shared: Path, limit: int) -> dict[str, Any]:
    """Perplexity over every position, and mean accuracy with its standard error."""
    runtime = TorchDecoder(decoder, 2048, SEQUENCES)
    text = (shared / "data/text/wikitext2-raw/wiki.test.raw").read_text(encoding="utf-8")
    rows = chunk(runtime, text, 512, 8)
    logs = [log_probabilities(runtime.logits(row[:-1].tolist()), row[1:]) for row in rows]
    found: dict[str, Any] = {"perplexity": float(np.exp(-np.concatenate(logs).mean()))}
    if limit:
        items = load_all(TASKS, shared / "data/zeroshot", limit)
        answers = finish(answer({"": lambda: runtime}, items))[""]
        mean = Mean.average([Mean.from_items(one.usual) for one in answers.values()])
        found |= {"accuracy": mean.value, "accuracy_error": mean.error}
    return found


def result(row: str, shared: Path, alpaca: Path, limit: int) -> dict[str, Any]:
    """One row: slice (from the cache if it was done), measure."""
    start = time.monotonic()
    checkpoint = open_checkpoint(MODEL) if row == "dense" else sliced(recipe(row, shared, alpaca))
    minutes = (time.monotonic() - start) / 60
    weights = sum(spec.numel for spec in checkpoint.specs.values())
    about = {"row": row, "weights": weights, "minutes": minutes}
    return about | measured(Decoder(checkpoint), shared, limit)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown; the README has it as it is."""
    tasks = any("accuracy" in r for r in rows.values())
    lines = ["| method | columns | weights | perplexity | × dense |" + " zero-shot |" * tasks]
    lines += ["|---|---:|---:|---:|---:|" + "---:|" * tasks]
    dense = rows["dense"]["perplexity"] if "dense" in rows else float("nan")
    for name, r in rows.items():
        method, width, *more = name.split(":") if ":" in name else (name, "576")
        label = method + (f" ({', '.join(more)})" if more else "")
        line = f"| {label} | {width} | {r['weights'] / 1e6:.1f} M | {r['perplexity']:.2f} "
        line += f"| {r['perplexity'] / dense:.2f} |"
        if "accuracy" in r:
            line += f" {100 * r['accuracy']:.1f} ± {100 * r['accuracy_error']:.1f} % |"
        lines.append(line + " – |" * (tasks and "accuracy" not in r))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    shared, kept = options.shared.resolve(), RESULTS / "slicing.json"
    rows = {r["row"]: r for r in json.loads(kept.read_text())} if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        alpaca = Path(folder) / "alpaca.txt"
        answers = json.loads((shared / "data/calib/alpaca_small.json").read_text())
        parts = (f"{a['instruction']}\n{a['input']}\n{a['output']}\n" for a in answers)
        alpaca.write_text("\n".join(parts), encoding="utf-8")
        make = partial(result, shared=shared, alpaca=alpaca, limit=options.limit)
        finish(Check(open_checkpoint(MODEL)).complete(Threads()))  # is in no row's minutes
        for row in options.rows.split(","):
            rows[row] = make(row)
            known = [*ROWS.split(","), *rows]
            ordered = {key: rows[key] for key in dict.fromkeys(known) if key in rows}
            print(table(ordered).splitlines()[2 + [*ordered].index(row)], flush=True)
            kept.write_text(json.dumps([*ordered.values()], indent=1) + "\n")
            (RESULTS / "slicing.md").write_text(table(ordered) + "\n")


if __name__ == "__main__":
    main()
