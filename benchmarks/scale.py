"""Models larger than memory: what planning, and every stage of one real block, take; and the whole.

A Llama with the shape of 7B, 70B or 405B is written as sparse files and planned. Then a model of
the same widths with one block of random weights goes through the stages, each in a process of its
own, with few tokens. Memory is limited to the bound, as with `--memory`.

Told is the most that was in pages that no file backs (RssAnon, looked at every 20 ms), and beside
it the high-water mark with mapped files (VmHWM). Seconds are those of cores, so that a machine that
does other things gives nearly the same. The whole is then computed:

- `grids` and `decompose` go item by item, so blocks and the matrices outside are known
  apart: time = blocks × block + outside. Memory is that of the largest item.
- All other stages: blocks × what the model of one block took, which counts embeddings and head once
  a block, and is too much by that.
- Time of `calibrate` is linear in tokens; it is given for 1,000 of them.

    python -m benchmarks.scale --shape 7B --work FOLDER            # all stages
    python -m benchmarks.scale --shape 70B --work FOLDER           # needs 24 GiB of memory
    python -m benchmarks.scale --shape 70B --work FOLDER --only plan
    python -m benchmarks.scale --shape 7B --work FOLDER --only decompose --weights down_proj

`--only` and `--weights` take parts; rows of `benchmarks/results/scale.json` that were not measured
again stay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tests.support.shapes import LLAMA_7B, LLAMA_70B, LLAMA_405B, Shape, write_sparse

SHAPES = {"7B": LLAMA_7B, "70B": LLAMA_70B, "405B": LLAMA_405B}
BOUNDS = {"7B": 8 << 30, "70B": 24 << 30}
"""Most memory that a whole build may take."""
PLAN = "plan"
STAGES = ("check", "grids", "calibrate", "decompose", "export", "measure")
BY_ITEM = ("grids", "decompose")
TOKENS, LENGTH = 1024, 256
COMPRESS = {"format": "q4_0", "rank": 64, "damping": [0.01], "iterations": 1}
RESULTS = Path(__file__).parent / "results"
HEADING = (
    "`python -m benchmarks.scale --shape SHAPE --work FOLDER` makes these tables; its docstring "
    "says what is\nmeasured, and how the whole follows from one block. Stages without a row were "
    "not run."
)
GIB = 1 << 30
INTERVAL = 0.02
"""Seconds between looks at the memory."""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and the cache")
    parser.add_argument("--only", nargs="*", choices=(PLAN, *STAGES), default=[PLAN, *STAGES])
    parser.add_argument("--weights", nargs="*", help="parts of names of weights to decompose")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return
    results = RESULTS / "scale.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    rows = found.setdefault(options.shape, {})
    for stage in options.only:
        row = child(stage)
        if stage == "decompose" and options.weights and stage in rows:
            row["items"] = rows[stage]["items"] | row["items"]
        rows[stage] = row
        results.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{options.shape} {stage}: {row}", flush=True)
    write_table(found)


def write_table(found: dict[str, Any]) -> None:
    """Write `benchmarks/results/scale.md`."""
    parts = [HEADING, *(table(shape, found[shape]) for shape in SHAPES if shape in found)]
    (RESULTS / "scale.md").write_text("\n\n".join(parts) + "\n")


def child(stage: str) -> dict[str, Any]:
    """The figures of a stage, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--worker", stage]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one stage here."""
    from edgepack.core.hardware import limit_memory

    os.environ["EDGEPACK_CACHE"] = str(options.work / "cache")
    limit_memory(BOUNDS.get(options.shape))
    shape: Shape = SHAPES[options.shape]
    whole = options.worker == PLAN
    model = options.work / f"{options.shape}-{'whole' if whole else 'block'}"
    if not model.exists():
        few = replace(shape, layers=1, shards=1)
        write_sparse(model, shape if whole else few, () if whole else (0,))
    recipe = write_recipe(options.work, model)
    return plan(recipe) if whole else run_stage(recipe, options.worker, options.weights or [])


def write_recipe(work: Path, model: Path) -> Path:
    """A recipe for a model, with a text of its own."""
    (work / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 2000)
    content = {
        "model": model.name,
        "calibrate": {
            "source": "text.txt",
            "tokens": TOKENS,
            "held_out": 0.25,
            "sequence_length": LENGTH,
        },
        "compress": COMPRESS,
        "export": {"measure": {"tokens": LENGTH, "context": LENGTH, "reference": "streamed"}},
    }
    path = work / f"{model.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def plan(recipe: Path) -> dict[str, Any]:
    """Seconds, memory and bytes read of `edgepack plan`, imports included, and what it expects."""
    before = read_bytes()
    with Watch() as watch:
        import edgepack
        from edgepack.core.headers import reading_headers
        from edgepack.report.show import plan_facts

        made = edgepack.plan(recipe)
        facts = plan_facts(made)
    with reading_headers():
        memory = {stage.name: stage.memory() for stage in made.stages}
    return watch.figures() | {
        "read": read_bytes() - before,
        "expected": facts["memory"],
        "expected_by_stage": memory,
        "files": sum(facts["bytes"].values()),
        "parameters": facts["parameters"],
    }


def run_stage(recipe: Path, name: str, weights: Sequence[str]) -> dict[str, Any]:
    """Complete a stage of the model of one block; those before it are there."""
    import torch

    import edgepack
    from edgepack.core.hardware import return_freed_memory
    from edgepack.core.progress import finish

    return_freed_memory()
    made = edgepack.plan(recipe)
    stage = next(one for one in made.stages if one.name == name)
    for before in made.stages[: made.stages.index(stage)]:
        if before.name != "decompose" or not weights:
            finish(before.complete(edgepack.pipeline.Threads()))
    one_by_one = OneByOne(weights)
    executor = one_by_one if name in BY_ITEM else edgepack.pipeline.Threads()
    with torch.no_grad(), Watch() as watch, suppress(StoppedError):
        finish(stage.complete(executor))
    folder = stage.folder if stage.is_done else stage.partial
    return watch.figures() | {
        "disk": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "items": one_by_one.items,
        "expected": stage.memory(),
    }


class StoppedError(Exception):
    """Not all items were asked for."""


class OneByOne:
    """An executor that does one item at a time on one core, and notes what each takes."""

    in_process = True

    def __init__(self, weights: Sequence[str]) -> None:
        self.weights = weights
        self.items: dict[str, dict[str, Any]] = {}

    def map(self, work: Callable[[Any], None], items: Sequence[Any]) -> Iterator[Any]:
        """See `Executor`; where only some weights are asked for, the stage ends after them."""
        import torch

        torch.set_num_threads(1)
        for item in items:
            if self.weights and not any(part in item.name for part in self.weights):
                continue
            yield item
            with Watch() as watch:
                work(item)
            self.items[item.name] = watch.figures() | {"needs": item.memory}
        if self.weights and len(self.items) < len(items):
            raise StoppedError


class Watch:
    """Seconds of all cores, and peaks of memory, of what is done in its body."""

    def __enter__(self) -> Watch:
        self.before, self.most, self.over = resident("RssAnon"), 0, threading.Event()
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(INTERVAL):
            self.most = max(self.most, resident("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.over.set()
        self.thread.join()

    def figures(self) -> dict[str, Any]:
        """CPU seconds, wall seconds; bytes of the process, of the work alone, and with files."""
        peak = max(self.most, resident("RssAnon"))
        return {
            "cpu": round(self.cpu, 1),
            "wall": round(self.wall, 1),
            "process": peak,
            "work": peak - self.before,
            "with_files": resident("VmHWM"),
        }


def resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def read_bytes() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def table(shape: str, rows: dict[str, Any]) -> str:
    """What was measured, and the whole that follows from it."""
    blocks, bound = SHAPES[shape].layers, BOUNDS.get(shape)
    limit = f"bound {bound / GIB:.0f} GiB" if bound else "no bound"
    lines = [
        f"## {shape}: {blocks} blocks, {limit}",
        "",
        "| stage | CPU s, measured | peak of the process, GiB | of the work, GiB "
        "| with mapped files, GiB | expected, GiB | disk, GB | whole, CPU hours | whole, disk GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for stage, row in rows.items():
        whole, disk = whole_of(stage, row, blocks)
        cells = [
            stage,
            f"{row['cpu']:.0f}",
            f"{row['process'] / GIB:.2f}",
            f"{row['work'] / GIB:.2f}",
            f"{row['with_files'] / GIB:.2f}",
            f"{row['expected'] / GIB:.2f}",
            f"{row.get('disk', 0) / 1e9:.2f}",
            whole,
            disk,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if PLAN in rows:
        read = rows[PLAN]["read"] / 1e6
        expected = "What is expected of `plan` is the peak of the whole build."
        lines += ["", f"Planning read {read:.0f} MB, imports and tokenizer included. {expected}"]
    if items := rows.get("decompose", {}).get("items"):
        lines += ["", "| weight | CPU s | peak of the work, GiB | admitted for, GiB |"]
        lines.append("|---|---:|---:|---:|")
        for name, row in items.items():
            peak, needs = row["work"] / GIB, row["needs"] / GIB
            lines.append(f"| {name} | {row['cpu']:.0f} | {peak:.2f} | {needs:.2f} |")
    return "\n".join(lines)


def whole_of(stage: str, row: dict[str, Any], blocks: int) -> tuple[str, str]:
    """CPU hours and GB of disk of all blocks."""
    if stage == PLAN:
        return f"{row['cpu'] / 3600:.3f}", f"{row['files'] / 1e9:.0f} (files)"
    disk = f"{blocks * row['disk'] / 1e9:.0f}"
    if stage == "calibrate":
        per_thousand = blocks * row["cpu"] / TOKENS * 1000 / 3600
        return f"{per_thousand:.2f} a 1,000 tokens", disk
    if not row["items"]:
        return f"{blocks * row['cpu'] / 3600:.2f}", disk
    inside = [r["cpu"] for name, r in row["items"].items() if ".layers." in name]
    outside = [r["cpu"] for name, r in row["items"].items() if ".layers." not in name]
    total = (blocks * math.fsum(inside) + math.fsum(outside)) / 3600
    some = "" if len(inside) == 7 else f" ({len(inside)} of 7 weights)"
    return f"{total:.2f}{some}", disk


if __name__ == "__main__":
    main()
