"""Seconds, CPU seconds and memory of every stage of a build, and of the whole process.

    python -m benchmarks.stages [RECIPE] [--rounds 5] [--name after] [--against before] [--add]

The recipe is the quickstart's unless another is named. In a round, every stage runs in a process of
its own, one after another in an empty cache, and its own time is taken: without starting Python and
without hashing what earlier stages wrote. Then `edgepack build` does all of it in one process, in
another empty cache. Figures are medians of the rounds.

`cores` is CPU seconds over seconds: on two cores, 1.6 is 80 % use. `peak` is the most memory that
was resident. `compiling` is what a first build needs beside that: seconds in which numba compiles
the loops for the recipe's formats, in an empty cache of its own; later builds find them there.

The rows of a run go to results/stages.json under its name; `--against` prints another one beside
it, and writes results/stages.md. With `--add`, rounds are added to those of the name, so that two
versions of the code can be measured in turns: copy this file and the JSON into a checkout of the
other one. CPU seconds say more than seconds on a machine that does something else as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quickstart import RECIPE
from benchmarks.same_type import RESULTS

PAGE, DATA = (Path(RESULTS) / f"stages.{suffix}" for suffix in ("md", "json"))
WHOLE, COMPILING = "whole process", "compiling"
ROWS, COLUMNS = 256, 512
"""Shape of the random weight that loops are compiled for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPE)
    parser.add_argument("--target", default="gguf")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--name", default="now", help="What results/stages.json calls this run.")
    parser.add_argument("--against", help="The name of an earlier run.")
    parser.add_argument("--only", help="Stages to take the time of, separated by commas.")
    parser.add_argument("--add", action="store_true", help="Add the rounds to those of the name.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(_worker(args.worker, args.recipe, args.target)))
        return
    found = _measured(args)
    known = json.loads(DATA.read_text()) if DATA.exists() else {}
    if args.add and args.name in known:
        found = _joined(known[args.name], found)
    known[args.name] = found
    DATA.write_text(json.dumps(known, indent=1) + "\n")
    text = _page(known, args.against, args.name)
    print(text)
    if args.against:
        PAGE.write_text(text + "\n")


def _joined(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Both runs' rounds."""
    names = dict.fromkeys([*before["rows"], *found["rows"]])
    rows = {n: [*before["rows"].get(n, []), *found["rows"].get(n, [])] for n in names}
    return found | {"rows": rows, "results": found["results"] or before["results"]}


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Every round's figures of every stage, and what the build says of its quality."""
    stages, weights = _stages(args.recipe, args.target)
    wanted = args.only.split(",") if args.only else [*stages, WHOLE, COMPILING]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    stages = stages[: max((stages.index(name) + 1 for name in wanted if name in stages), default=0)]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"NUMBA_CACHE_DIR": str(folder / "numba")}
        compiled = _run(COMPILING, args, environment)  # first, so that no stage has to
        if COMPILING in rows:
            rows[COMPILING].append(compiled)
        for turn in range(args.rounds):
            own = environment | {"EDGEPACK_CACHE": str(folder / f"stages-{turn}")}
            for stage in stages:
                row = _run(stage, args, own)
                print(turn, stage, row, file=sys.stderr, flush=True)
                if stage in rows:
                    rows[stage].append(row)
            if WHOLE in rows:
                own["EDGEPACK_CACHE"] = str(folder / f"whole-{turn}")
                row, results = _build(args, own, folder / f"out-{turn}")
                print(turn, WHOLE, row, file=sys.stderr, flush=True)
                rows[WHOLE].append(row)
    return {
        "recipe": args.recipe.name,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "weights": weights,
        "rows": rows,
        "results": results,
    }


def _stages(recipe: Path, target: str) -> tuple[list[str], int]:
    import edgepack

    plan = edgepack.plan(recipe, target=target)
    return [stage.label for stage in plan.stages], sum(s.numel for s in plan.model.specs.values())


def _run(stage: str, args: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.stages", str(args.recipe)]
    done = subprocess.run(
        [*command, "--target", args.target, "--worker", stage],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _build(
    args: argparse.Namespace, environment: Mapping[str, str], out: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole build as its own process: its figures, and its measurements."""
    command = [sys.executable, "-m", "edgepack", "build", str(args.recipe), "--json"]
    start = time.monotonic()
    with (out.parent / "build.json").open("w+b") as said:
        process = subprocess.Popen(
            [*command, "--target", args.target, "--out", str(out)],
            env=os.environ | dict(environment),
            stdout=said,
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("edgepack build failed")
        said.seek(0)
        results = json.loads(said.read())["measured"]["results"]
    seconds = time.monotonic() - start
    cpu, peak = used.ru_utime + used.ru_stime, float(used.ru_maxrss << 10)
    return {"seconds": seconds, "cpu": cpu, "peak": peak}, results


def _worker(name: str, recipe: Path, target: str) -> dict[str, float]:
    """The figures of one stage, whose inputs are in the cache."""
    import torch

    import edgepack
    from edgepack.core.executor import Threads
    from edgepack.core.hardware import peak_memory
    from edgepack.core.progress import finish

    plan = edgepack.plan(recipe, target=target)
    if name == COMPILING:
        return _compile(plan)
    stage = next(stage for stage in plan.stages if stage.label == name)
    start, used = time.monotonic(), _cpu()
    with torch.no_grad():
        finish(stage.complete(Threads()))
    seconds, cpu = time.monotonic() - start, _cpu() - used
    return {"seconds": seconds, "cpu": cpu, "peak": float(peak_memory())}


def _cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _compile(plan: Any) -> dict[str, float]:
    """What a small weight takes in every format of a plan the first time, less the second time."""
    import torch

    from edgepack import formats
    from edgepack.core.hardware import peak_memory
    from edgepack.core.weights import Hessian
    from edgepack.decompose.caldera import caldera

    generator = torch.Generator().manual_seed(0)
    W = torch.randn(ROWS, COLUMNS, generator=generator)
    H, H_out = (torch.eye(n).double() for n in (COLUMNS, ROWS))
    sides = (Hessian(H, H, H.diagonal(), *out) for out in ((H_out, H_out), ()))
    problems = [(formats.get(n), s) for s in sides for n in {f.Q for f in plan.formats.values()}]
    taken = []
    for _ in range(2):
        start, used = time.monotonic(), _cpu()
        for fmt, side in problems:
            caldera(W, side, fmt, rank=0, factors="f16", damping=[0.03], iterations=1)
        taken.append((time.monotonic() - start, _cpu() - used))
    (seconds, cpu), (again, cpu_again) = taken
    return {"seconds": seconds - again, "cpu": cpu - cpu_again, "peak": float(peak_memory())}


def _page(known: Mapping[str, Any], against: str | None, name: str) -> str:
    """The table of a run, beside that of another one."""
    runs = [run for run in (against, name) if run]
    new = known[name]
    lines = [
        f"`{new['recipe']}`, {new['weights'] / 1e6:.1f} million weights, {new['machine']}.",
        "",
        "| stage |" + "".join(f" s, {r} | CPU s | cores | s per M weights | peak |" for r in runs),
        "|---|" + "---:|" * (5 * len(runs)),
    ]
    for stage in new["rows"]:
        cells = [_cells(known[run]["rows"].get(stage, []), known[run]["weights"]) for run in runs]
        lines.append(f"| {stage} |" + "".join(cells))
    for run in runs:
        for label, r in known[run]["results"].items():
            kl = f"KL {r['kl_mean']:.4f} ± {r['kl_error']:.4f}"
            lines.append(f"\n{run}, {label}: {r['bytes'] / 1e6:.1f} MB, {kl}")
    return "\n".join(lines)


def _cells(rows: list[dict[str, float]], weights: int) -> str:
    if not rows:
        return " | | | | |"
    s, cpu, peak = (median(row[key] for row in rows) for key in ("seconds", "cpu", "peak"))
    return f" {s:.1f} | {cpu:.1f} | {cpu / s:.2f} | {1e6 * s / weights:.2f} | {peak / 1e9:.2f} GB |"


if __name__ == "__main__":
    main()
