"""Seconds per million weights of every stage, on the CPU and on every accelerator of this machine.

    python -m benchmarks.accelerators [RECIPE] [--rounds 3] [--devices cpu,cuda]

The recipe is the quickstart's with recovery, unless another is named. In a round every device takes
a turn: each stage runs in a process of its own, one after another in an empty cache, and its own
time is taken, without starting Python. Figures are medians of the rounds. Without an accelerator
there is the CPU's column alone.

What the results are worth is beside that: the KL to the original on held-out tokens before and
after recovery, and the sum of the errors of all weights. Rows go to results/accelerators.json, the
table to results/accelerators.md; devices that are not here keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.quickstart import RECIPE
from benchmarks.same_type import RESULTS
from edgepack.core import accelerator
from edgepack.core.tables import markdown

PAGE, DATA = (Path(RESULTS) / f"accelerators.{suffix}" for suffix in ("md", "json"))
MEASURED = ("text", "slice", "rft", "calibrate", "allocate", "decompose", "recover")
"""Stages that compute on the device."""
QUALITY = {"start": "KL before recovery", "best": "KL after it", "error": "Σ errors of weights"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", default=",".join(["cpu", *accelerator.found()]))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(_stage(args.recipe, args.devices, args.stage)))
        return
    known = json.loads(DATA.read_text()) if DATA.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        recipe = args.recipe or _with_recovery(Path(name))
        for turn in range(args.rounds):
            for device in args.devices.split(","):
                cache = Path(name) / f"{device}-{turn}".replace(":", "-")
                row = _round(recipe, device, cache)
                label = row.pop("device")
                known.setdefault(label, {})[str(turn)] = row | {"recipe": recipe.name}
    DATA.write_text(json.dumps(known, indent=1) + "\n")
    text = "\n".join(markdown(table(known)))
    print(text)
    PAGE.write_text(text + "\n")


def _with_recovery(folder: Path) -> Path:
    recipe = yaml.safe_load(RECIPE.read_text()) | {"recover": {"steps": 20}}
    path = folder / "quickstart-recovered.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _round(recipe: Path, device: str, cache: Path) -> dict[str, Any]:
    """Stage → seconds per million weights, in an empty cache; what the device is; what came out."""
    found: dict[str, Any] = {"seconds": {}}
    for stage in ("", *MEASURED):  # the first one runs what is measured by no stage
        command = [sys.executable, "-m", "benchmarks.accelerators", str(recipe)]
        command += ["--devices", device, "--stage", stage or "check"]
        environment = os.environ | {"EDGEPACK_CACHE": str(cache)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        found["device"] = said["device"]
        found |= {key: said[key] for key in QUALITY if key in said}
        if stage and said["seconds"] is not None:
            found["seconds"][stage] = said["seconds"]
            print(device, stage, f"{said['seconds']:.3f} s per million weights", file=sys.stderr)
    return found


def _stage(recipe: Path, name: str, wanted: str) -> dict[str, Any]:
    """Run one stage, whose inputs are in the cache, and those before it that nobody measures."""
    import torch

    import edgepack
    from edgepack.core.executor import Threads
    from edgepack.core.progress import finish
    from edgepack.decompose.stage import Decompose

    plan = edgepack.plan(recipe, device=name)
    weights = sum(spec.numel for spec in plan.model.specs.values() if spec.is_matrix)
    found: dict[str, Any] = {"device": accelerator.describe(plan.device), "seconds": None}
    with torch.no_grad():
        for stage in plan.stages:
            if stage.name not in (*MEASURED, "check", "grids"):
                continue
            start = time.monotonic()
            finish(stage.complete(Threads()))
            accelerator.synchronize(plan.device)
            if stage.name == wanted:
                found["seconds"] = 1e6 * (time.monotonic() - start) / weights
                break
    recovered, decomposed = plan.facts.get("recovered"), plan.find(Decompose)
    if recovered:
        found |= {key: recovered[key] for key in ("start", "best")}
    if decomposed is not None and decomposed.is_done:
        about = decomposed.about(decomposed.folder)
        found["error"] = sum(one["error"] for one in about.values())
    return found


def table(known: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Devices side by side, each with its ratio to the CPU."""
    cpu, others = known.get("cpu", {}), [name for name in known if name != "cpu"]
    rows = [["s per million weights", "cpu", *(part for n in others for part in (n, "cpu / it"))]]
    for stage in MEASURED:
        own = _median(cpu, stage)
        cells = ["–" if own is None else f"{own:.3f}"]
        for name in others:
            there = _median(known[name], stage)
            ratio = None if own is None or not there else own / there
            cells.append("–" if there is None else f"{there:.3f}")
            cells.append("–" if ratio is None else f"{ratio:.1f}")
        if set(cells) != {"–"}:
            rows.append([stage, *cells])
    for key, label in QUALITY.items():
        values = [_values(known[name], key) for name in ("cpu", *others) if name in known]
        if all(values):
            cells = [f"{median(value):.4g}" for value in values]
            rows.append([label, cells[0], *(part for cell in cells[1:] for part in (cell, ""))])
    return rows


def _median(rounds: Mapping[str, Any], stage: str) -> float | None:
    found = [row["seconds"][stage] for row in rounds.values() if stage in row["seconds"]]
    return median(found) if found else None


def _values(rounds: Mapping[str, Any], key: str) -> Sequence[float]:
    return [row[key] for row in rounds.values() if key in row]


if __name__ == "__main__":
    main()
