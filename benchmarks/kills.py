"""Builds that are killed at random moments, in all stages and for every target.

    python -m benchmarks.kills [--kills 200] [--seed 0]

Each recipe is built once in peace. Then it is built again and again from an empty cache, ended at a
random moment (kill -9, SIGTERM or SIGHUP, by chance), until one build comes to its end. Its output
and its cache must have the very bytes of the undisturbed one, and nothing may be left beside them;
then it begins anew until there were so many kills. A small random model; every stage that edgepack
has is in one of the recipes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from benchmarks.same_type import RESULTS

CALIBRATE = {"tokens": 1024, "sequence_length": 64}
MEASURE = {"measure": {"tokens": 256, "context": 64}}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "a size, recovered": (
        "gguf",
        {"compress": {"target_size": "70KB", "ranks": [0, 4]}, "recover": {"steps": 4}},
    ),
    "sliced, fine-tuned, packed": (
        "gguf",
        {
            "slice": {"width": 32, "round_to": 32, "recover": {"steps": 4, "rank": 4}},
            "compress": {"format": "q4_0", "rank": 4, "factors": "f16"},
        },
    ),
    "shortcuts": (
        "onnx",
        {
            "slice": {"method": "per_block", "sparsity": 0.5, "allow_growth": True},
            "compress": {"format": "q4_0"},
            "recover": {"steps": 4},
        },
    ),
    "layer by layer": (
        "onnx",
        {
            "calibrate": {**CALIBRATE, "objective": "layer"},
            "compress": {"format": "int4_g32", "embeddings": "int4_g32"},
        },
    ),
    "a checkpoint": ("checkpoint", {"slice": {"width": 32, "round_to": 32}}),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(recipe: Path, target: str, place: Path) -> int:
    """A process that builds into `place`, which gets ``cache`` and ``out``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["EDGEPACK_CACHE"] = str(place / "cache")
        sys.stderr = sys.stdout = (place.parent / "said").open("a")
        from edgepack.cli import app
        from edgepack.cli._app import heed_signals

        heed_signals()
        # --force: it may have been killed when all was done but the clearing up
        app(["build", str(recipe), "--target", target, "--out", str(place / "out"), "--force"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def stage_of(place: Path) -> str:
    """The stage that a killed build was in."""
    partial = sorted(path.parent.name for path in (place / "cache").glob("*/*.partial"))
    return partial[-1] if partial else "between stages"


def ended(child: int, seconds: float, how: signal.Signals) -> int | None:
    """The exit code of a process that ended by itself in time, else None: it was ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, how)
    os.waitpid(child, 0)
    return None


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs, and what was left behind."""
    one, two = files(whole), files(killed)
    left = [p.name for p in killed.iterdir() if p.name not in ("cache", "out")]
    return left + sorted(n for n in one.keys() | two.keys() if one.get(n) != two.get(n))


def run(name: str, kills: int, draw: random.Random, place: Path) -> dict[str, Any]:
    """So many kills of one recipe."""
    target, changes = RECIPES[name]
    recipe = place / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": "model", "calibrate": CALIBRATE, "export": MEASURE, **changes})
    )
    whole = place / "whole"
    whole.mkdir()
    began = time.monotonic()
    code = ended(start(recipe, target, whole), 3600, signal.SIGKILL)
    seconds = time.monotonic() - began
    if code != 0:
        raise SystemExit((place / "said").read_text())
    found: dict[str, Any] = {"stages": Counter(), "kills": 0, "rounds": 0, "wrong": []}
    while found["kills"] < kills:
        killed = place / f"killed-{found['rounds']}"
        killed.mkdir()
        patience = 0.4  # grows, for a machine that has become slower meanwhile
        while True:
            moment = draw.uniform(0.02, patience) * seconds
            patience *= 1.04
            code = ended(start(recipe, target, killed), moment, draw.choice(SIGNALS))
            if code is not None:
                break
            found["kills"] += 1
            found["stages"][stage_of(killed)] += 1
        found["rounds"] += 1
        if code != 0:
            raise SystemExit((place / "said").read_text())
        found["wrong"] += compare(whole, killed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    import edgepack.pipeline  # noqa: F401  (loaded once, before the forks)
    from tests.support.tiny import make_model

    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    lines = ["| recipe | target | kills | builds that ended | files that differ | killed in |"]
    lines += ["|---|---|---:|---:|---:|---|"]
    wrong = []
    for name, (target, _) in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder) / "model", intermediate=128, tied=False)
            found = run(name, -(-options.kills // len(RECIPES)), draw, Path(folder))
        stages = ", ".join(f"{stage} {count}" for stage, count in found["stages"].most_common())
        row = [name, target, found["kills"], found["rounds"], len(found["wrong"]), stages]
        lines.append("| " + " | ".join(map(str, row)) + " |")
        print(lines[-1], flush=True)
        wrong += found["wrong"]
    (RESULTS / "kills.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit(f"differ or left behind: {wrong[:10]}")


if __name__ == "__main__":
    main()
