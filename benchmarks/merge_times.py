"""Our merge methods beside mergekit's: seconds and memory.

    python -m benchmarks.merge_times run edgepack ours.json [--elements 50000000] [--threads 2]
    OTHER/bin/python -m benchmarks.merge_times run mergekit theirs.json [the same]
    python -m benchmarks.merge_times table ours.json theirs.json

OTHER is an environment with mergekit, as for `merge_parity`. Each method runs in a process of its
own; give both tools the same options.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.merge_parity import RANDOM, Case, make_inputs, merge_ours, merge_theirs

_TWO: dict[str, Any] = {"models": 2, "base": True, "of_models": {"weight": [0.6, 0.4]}}
_HALF: dict[str, Any] = _TWO | {"of_models": {"weight": [0.6, 0.4], "density": [0.5, 0.5]}}
TIMED: dict[str, dict[str, Any]] = {
    "arcee_fusion": {"models": 1, "base": True},
    "karcher": {"models": 2, "base": False},
    "linear": _TWO | {"base": False},
    "model_stock": {"models": 2, "base": True},
    "multislerp": _TWO,
    "nearswap": {"models": 1, "base": True, "whole": {"t": 0.01}},
    "nuslerp": _TWO,
    "passthrough": {"models": 1, "base": False, "of_models": {"scale": [0.5]}},
    "ram": {"models": 2, "base": True},
    "ramplus_tl": {"models": 2, "base": True},
    "sce": {"models": 2, "base": True, "whole": {"select_topk": 0.5}},
    "slerp": {"models": 1, "base": True, "whole": {"t": 0.4}},
    "task_arithmetic": _TWO,
    **dict.fromkeys(("breadcrumbs", "breadcrumbs_ties", "ties", *RANDOM), _HALF),
}
"""What is timed of each method: two models, or as many as it takes, and half of the elements."""


def measure(
    tool: str, file: Path, elements: int, threads: int, dtype: str, methods: list[str]
) -> None:
    """Seconds and memory of each method, in a process of its own, into a JSON file."""
    results = json.loads(file.read_text()) if file.exists() else {}
    size = {"elements": elements, "threads": threads, "dtype": dtype}
    for method in methods:
        code = f"from benchmarks.merge_times import alone; alone({tool!r}, {method!r}, **{size})"
        output = subprocess.run(
            [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        results[method] = json.loads(output.splitlines()[-1]) | size
        file.write_text(json.dumps(results, indent=1))


def alone(tool: str, method: str, elements: int, threads: int, dtype: str) -> None:
    """Print seconds of the best of three merges, and the most memory beside inputs and result."""
    torch.set_num_threads(threads)
    merge = merge_theirs if tool == "mergekit" else partial(merge_ours, masks=[])
    case = Case(method, **TIMED[method])
    kind = getattr(torch, dtype)
    small = make_inputs("64x4096", 0)
    merge(case, case.take(small))  # imports, and compiles what has to be
    width = 4096
    base = torch.randn(elements // width, width, generator=torch.Generator().manual_seed(0))
    tensors = [base.to(kind)]
    for _ in range(case.models):
        tensors.append((base + torch.empty_like(base).normal_(std=0.01)).to(kind))
    del base
    tensors = tensors[not case.base :]
    before, seconds = _resident(), []
    with _Peak() as peak:
        for _ in range(3):
            start = time.perf_counter()
            result = merge(case, tensors)
            seconds.append(time.perf_counter() - start)
            shared = result is tensors[0]
            size = result.numel() * result.element_size()
            del result
    extra = peak.bytes - before - (0 if shared else size)
    print(json.dumps({"seconds": min(seconds), "tensors": extra / (elements * 4)}))


class _Peak:
    """The most memory of this process, looked at every millisecond."""

    bytes = 0

    def __enter__(self) -> _Peak:
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.bytes = max(self.bytes, _resident())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def table(files: list[Path]) -> None:
    """Seconds for 100 million elements, and memory in float32 tensors beside inputs and result."""
    ours, theirs = (json.loads(file.read_text()) for file in files)
    print("| method | s | mergekit | ratio | tensors | mergekit |\n|---|---|---|---|---|---|")
    for method in sorted(ours):
        a, b = ours[method], theirs[method]
        seconds = [x["seconds"] * 1e8 / x["elements"] for x in (a, b)]
        cells = [
            f"{x:.2f}" for x in (*seconds, seconds[0] / seconds[1], a["tensors"], b["tensors"])
        ]
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("tool", choices=("edgepack", "mergekit"))
    command.add_argument("file", type=Path)
    command.add_argument("--elements", type=int, default=50_000_000)
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--dtype", default="float32")
    command.add_argument("--methods", type=lambda text: text.split(","), default=sorted(TIMED))
    command.set_defaults(run=measure)
    command = commands.add_parser("table")
    command.add_argument("files", type=Path, nargs=2)
    command.set_defaults(run=table)
    given = vars(parser.parse_args())
    given.pop("run")(**given)
