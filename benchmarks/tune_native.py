"""Memory and speed of edgepack-tune, beside `edgepack finetune` and what others publish.

    python -m benchmarks.tune_native [--rounds 3] [--threads 2]

MeSP's set-up (arXiv 2602.13069, table 1): rank 8 on all seven projections, one example of 256
tokens a step, all of them learnt, exact gradients. Models: SmolLM2-135M-Instruct as its package has
it (q4_1), and a random one of Qwen2.5-0.5B's shape (q4_0, its tied head in q8_0). edgepack-tune is
compiled for this machine. The process of each row is its own; `process` is VmHWM, the peak of the
resident memory with libraries and mapped files. Native and Python take turns; figures are medians.
Both see as many tokens, and use as many threads.

Published by others, in their settings: MeSP 136 MB (Qwen2.5-0.5B, by its framework) and
MobileFineTuner 2,887 MB (arXiv 2512.08211, the process, 128 tokens). qvac-fabric trains on a
phone's GPU (Adreno 830): docs/BENCHMARKS.md of tetherto/qvac-rnd-fabric-llm-finetune, Qwen3-1.7B,
contexts of 128 tokens, seven projections. Speed times parameters makes models of different sizes
comparable, not machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.finetune_memory import RANK, TOKENS, random_gguf
from benchmarks.same_type import MODEL, RESULTS

PAGE = Path(RESULTS) / "tune_native.md"
TEXT = "The lazy dog sleeps in the shade of an old tree, and the quick brown fox jumps over it. "
PARAMETERS = {"SmolLM2-135M": 134_515_008, "Qwen2.5-0.5B's shape": 494_032_768}
PUBLISHED = (
    ("qvac-fabric, Adreno 830, q4_0", 1_700_000_000, 6.73),
    ("qvac-fabric, Adreno 830, q8_0", 1_700_000_000, 6.09),
)
STEPS = 4


@dataclass(frozen=True)
class Found:
    """Of one process: its peak, what was planned, and tokens trained a second."""

    peak: int
    planned: int
    speed: float


def native(program: Path, model: Path, threads: int, options: dict[str, Any]) -> Found | str:
    """Train in a process; or why it refuses."""
    with tempfile.TemporaryDirectory() as place:
        request = {
            "id": "benchmark",
            "do": "train",
            "model": str(model),
            "examples": [{"text": TEXT * 80}],
            "out": f"{place}/adapter.gguf",
            "state": f"{place}/state",
            "threads": threads,
            "options": {"r": RANK, "steps": STEPS, "batch_size": 1, "sequence_length": TOKENS}
            | options,
        }
        if "replay" in options:
            texts = [[(7 * i * j + 3) % 40000 for i in range(129)] for j in range(1, 17)]
            path = Path(place) / "replay.json"
            path.write_text(json.dumps({"version": 1, "texts": texts}))
            request["replay"] = str(path)
        events = _events(program, request)
    last = events[-1]
    if last["event"] == "failed":
        return str(last["message"])
    planned = next(event["memory"] for event in events if event["event"] == "planned")
    return Found(last["memory"]["peak"], planned, last["tokens_per_second"])


def _events(program: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        found = []
        for line in process.stdout:
            found.append(json.loads(line))
            if found[-1]["event"] in ("ended", "failed"):
                break
        process.stdin.close()
    return found


def python(model: Path, threads: int) -> Found:
    """The same with `edgepack.finetune`, freed memory handed back at once."""
    command = [sys.executable, "-m", "benchmarks.finetune_memory"]
    done = subprocess.run(
        [*command, "--work", str(model), "{}", str(STEPS)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Found(found["process"], found["planned"], TOKENS / found["seconds"])


def least(program: Path, model: Path, threads: int) -> int:
    """The smallest `memory` that is not refused, in bytes."""
    refusal = native(program, model, threads, {"memory": 1})
    assert isinstance(refusal, str)
    return (int(refusal.split()[-2]) + 1) * 1_000_000  # it is rounded there


def measured(model: Path, rounds: int, threads: int) -> dict[str, list[Found]]:
    """Rows of a model by name, a `Found` a round."""
    from edgepack.native.build import make_program
    from edgepack.native.toolchains import HOST

    program = make_program("tune", HOST, say=lambda text: print(text, file=sys.stderr))
    small = {"memory": least(program, model, threads)}
    rows: dict[str, list[Found]] = {}
    for _ in range(rounds):
        for name, options in {
            "edgepack-tune": {},
            "… with general text (`replay`)": {"replay": 1},
            "… the least `memory`": small,
        }.items():
            found = native(program, model, threads, options)
            if isinstance(found, str):
                raise SystemExit(found)
            rows.setdefault(name, []).append(found)
        rows.setdefault("edgepack finetune (Python)", []).append(python(model, threads))
    return rows


def table(models: dict[str, Path], rounds: int, threads: int) -> list[str]:
    """The page's lines."""
    load = os.getloadavg()[0]
    busy = load > 0.3 * (os.cpu_count() or 1)
    lines = [
        f"{threads} threads, medians of {rounds} rounds, {STEPS} steps of {TOKENS} tokens each; "
        + (f"the machine was busy (load {load:.1f}): trust ratios" if busy else "a quiet machine"),
        "",
        "| model | | process | planned | tokens/s | of Python's | tokens/s × parameters |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, path in models.items():
        rows = measured(path, rounds, threads)
        reference = [found.speed for found in rows["edgepack finetune (Python)"]]
        for about, found in rows.items():
            pairs = zip(found, reference, strict=True)
            ratio = median(own.speed / other for own, other in pairs)
            peak, planned = (median(getattr(f, key) for f in found) for key in ("peak", "planned"))
            speed = median(f.speed for f in found)
            lines.append(
                f"| {name} | {about} | {peak / 1e6:.0f} MB | {planned / 1e6:.0f} MB | {speed:.0f} "
                f"| {ratio:.2f} | {speed * PARAMETERS[name]:.2g} |"
            )
            print(lines[-1], flush=True)
    for about, parameters, speed in PUBLISHED:
        product = f"{speed * parameters:.2g}"
        lines.append(f"| Qwen3-1.7B | {about} (published) | | | {speed} | | {product} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        qwen = Path(place) / "qwen" / "base.gguf"
        qwen.parent.mkdir()
        random_gguf(qwen)
        models = {"SmolLM2-135M": _smollm2(Path(place)), "Qwen2.5-0.5B's shape": qwen}
        lines = table(models, arguments.rounds, arguments.threads)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(PAGE)


def _smollm2(place: Path) -> Path:
    from edgepack.checkpoint import open_checkpoint

    path = place / "smollm2" / "base.gguf"
    path.parent.mkdir()
    path.symlink_to(open_checkpoint(MODEL).path)
    return path


if __name__ == "__main__":
    main()
