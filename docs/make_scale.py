"""Write docs/scale.md: what 70B and 405B take on N machines, from measured costs. Run after
`python -m benchmarks.cluster_costs` or `python -m benchmarks.cluster`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cluster as overhead
from edgepack.calibration.text import TOKENS_PER_COLUMN
from edgepack.core.tables import markdown
from edgepack.model.stream import RUNS

PAGE = Path(__file__).with_name("scale.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

CORES, NETWORK = 32, 1.25e9
"""Of each machine: cores, and bytes a second of 10 Gbit/s."""
MACHINES = (1, 4, 10, 40)
RUNS_OF_BLOCK = RUNS + 1
"""Runs of a block: one of them is of the tokens held out, an eighth."""
WIDE = 8
"""Cores that a run of calibration uses (`calibration.side_by_side.AT_ONCE`)."""
CODES = 1.07
"""Bytes that come back for a weight: a code, and a scale for 32 of them."""
BF16, FLOAT, DOUBLE = 2, 4, 8
Shape = tuple[int, int]
TEXT = """# More machines than one

Made by `docs/make_scale.py` from results in `benchmarks/results/`; a test compares them.

```sh
pip install 'edgepack[cluster]'                     # on every machine, the same versions
ray start --head --port=6379 --disable-usage-stats  # on the first
ray start --address=FIRST:6379                      # on the others
edgepack build recipe.yaml --cluster auto           # on one of them
```

`--cluster` takes `auto` (the cluster of this machine, or `RAY_ADDRESS`), `HOST:PORT` (this
machine is a node of it) or `ray://HOST:10001` (it is none). `build`, `merge`, `compare` and
`evaluate` have it. Files are the same, byte for byte, as without.

- **Ports.** Whoever reaches Ray's ports can run programs there. Keep them inside a network of
  your own, or set `RAY_AUTH_MODE=token` and a `RAY_AUTH_TOKEN` on all machines. edgepack tells
  Ray's makers nothing.
- **The same everywhere**: Python, edgepack, torch, numba, numpy, gguf, safetensors. A machine
  that differs is refused, by name. So is one with other files of the model at the same place.
- **One kind of processor.** Others round differently in the last digit, and bytes then depend on
  which machine did what. The report names the kinds.
- **Files.** What a machine sees on a shared file system, it reads itself (same path, inode, size
  and times). Else it is sent what an item reads: H of a weight, hidden states of a run, the
  weights of the model that it lacks. A model that it has as well (hub cache, package, copy) is
  hashed once and read there. `EDGEPACK_NOTHING_SHARED=1` on a machine says that all has to be
  sent.
- **Results** come back to the first machine, the only one that writes into the cache.
- **Losses.** Work of a machine that goes is done again, five times at most. Ctrl-C or kill -9
  here: run the same command again. If Ray's head goes, the build ends, and goes on the same way.

## What goes to the cluster

| stage | one item | side by side |
|---|---|---|
| `grids`, `allocate`, `decompose` | a weight, on one core | all weights of the model |
| `calibrate` | a run of batches at a block, on {wide} cores | {runs} runs; blocks in turn |
| `measure`, `evaluate`, `compare` | 512 tokens through all models, on one core | all chunks |
| `merge` | a tensor, on one core | all but embeddings with moved rows; none if `weighted` |

`text`, `slice`, `rft`, `recover`, `finetune`, `export` and zero-shot tasks stay on the first
machine. So do merges with adapters. A self-written text of a large model is slow there: give a
file.

## 70B and 405B on N machines

Models of the shapes of Llama 3.1. Machines of {cores} cores, 10 Gbit/s between them, nothing
shared. q4_0, objective `model`, one damping (each further one costs about as much again). Hours of
wall time if all cores are busy:

{times}

{facts}

- **Calibration is sequential in blocks**, and a block has {runs} runs of {wide} cores: more than
  {runs_cores} cores do not help. Its sums, 8 bytes for every pair of columns and run, go to the
  first machine and out again to be added; that does not get faster with machines. Time is
  proportional to `calibrate.tokens`, the network's part is not: below about a {share}th of the
  tokens the network is the limit.
- **Decompose is not faster than its largest weight** on one core. Each needs H in float64 several
  times over (`edgepack plan` says how much), and Ray hands out an item only where so much memory
  is free: machines with little memory keep cores idle, which the table does not count.
- **Disk**: H of all blocks, unless it is dropped as blocks are packed, then the results.

## Where the figures come from

`python -m benchmarks.cluster_costs`, one core of a machine that did other things as well, so
seconds are those of the processor. Decompose by shape; other shapes by a·numbers + b·products
with H and H_out + c·factors, fitted to these:

{measured}

Calibration: {rate} thousand million operations a second of a core, from SmolLM2-135M; larger
matrices run faster. Bytes follow from shapes. A tensor's codes are {codes} bytes a weight.

`python -m benchmarks.cluster`: weights of the quickstart's first blocks, on clusters of
`ray start` nodes on one machine of two cores. "With Ray's own" counts its processes as well, which
idle at a few per cent of a core for as long as they run; here that was long. Short runs show that
bytes are the same; a worker's start, about a second, weighs more in them.

{overhead}

## Not measured

No cluster of several real machines was at hand, no network slower than loopback, no model above
135M on a cluster, and no two kinds of processors. Times for 70B and 405B are computed, from
weights up to {largest}; `allocate`, `measure` and `export` are not in them. Memory of one machine
at these sizes is measured apart (`python -m benchmarks.scale`).
"""


@dataclass(frozen=True)
class Model:
    """A decoder of Llama's family."""

    short: str
    layers: int
    hidden: int
    inner: int
    kv: int
    vocabulary: int

    @property
    def block(self) -> list[Shape]:
        """Shapes of a block's matrices: q, k, v, o, gate, up, down."""
        d, m, kv = self.hidden, self.inner, self.kv
        return [(d, d), (kv, d), (kv, d), (d, d), (m, d), (m, d), (d, m)]

    @property
    def weights(self) -> int:
        """Numbers in the matrices of all blocks."""
        return self.layers * sum(out * n for out, n in self.block)

    @property
    def tokens(self) -> int:
        """The default of `calibrate.tokens`, with those held out."""
        return round(TOKENS_PER_COLUMN * max(self.hidden, self.inner) * 1.125)


MODELS = (
    Model("70B", 80, 8192, 28672, 1024, 128256),
    Model("405B", 126, 16384, 53248, 1024, 128256),
)


def features(shape: Shape) -> list[float]:
    """What takes time: the numbers, products with both metrics, factors of both."""
    out, n = map(float, shape)
    return [out * n, out * n * n + out * out * n, n**3 + out**3]


def fit(rows: Sequence[dict[str, Any]]) -> Callable[[Shape], float]:
    """Seconds of a core by shape: the sum of `features`, fitted to relative errors. A feature whose
    factor would be negative is left out."""
    X = np.array([features((row["rows"], row["columns"])) for row in rows])
    y = np.array([row["seconds"] for row in rows])
    kept = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(X[:, kept] / y[:, None], np.ones(len(y)), rcond=None)
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    return lambda shape: float(
        sum(f * features(shape)[k] for f, k in zip(found, kept, strict=True))
    )


def operations(blocks: Iterable[Shape], head: Shape) -> float:
    """Arithmetic operations of calibration a token: forward, forward again, and back through every
    weight, and the sums x xᵀ and g gᵀ, of which half is computed; at the head no second time."""
    inside = sum(6 * out * n + n * n + out * out for out, n in blocks)
    vocabulary, hidden = head
    return float(inside + 4 * vocabulary * hidden + hidden**2)


def rate(found: dict[str, Any]) -> float:
    """Operations a second of a core, as calibration was measured."""
    d, m = found["hidden_size"], found["intermediate_size"]
    q, kv = (found[key] * found["head_dim"] for key in ("heads", "kv_heads"))
    shapes = [(q, d), (kv, d), (kv, d), (d, q), (m, d), (m, d), (d, m)] * found["layers"]
    return found["tokens"] * operations(shapes, (found["vocab_size"], d)) / found["seconds"]


@dataclass(frozen=True)
class Costs:
    """Of a model: seconds of a core, and bytes through the driver."""

    model: Model
    calibrate: float
    decompose: float
    largest: float
    moments: float
    hessians: float
    weights: float

    @classmethod
    def of(cls, model: Model, measured: dict[str, Any]) -> Costs:
        """From what was measured."""
        seconds = fit(measured["decompose"])
        head = model.vocabulary, model.hidden
        work = model.tokens * operations(model.block * model.layers, head)
        sides = model.layers * sum(n * n + out * out for out, n in model.block)
        return cls(
            model,
            work / rate(measured["calibrate"]),
            model.layers * sum(map(seconds, model.block)),
            max(map(seconds, model.block)),
            RUNS_OF_BLOCK * DOUBLE * sides / 2,
            2 * FLOAT * sides / 2,
            model.weights,
        )

    def calibrated(self, machines: int) -> float:
        """Seconds: blocks one after another, their runs side by side, or sums through the network
        if those take longer."""
        cores = min(RUNS_OF_BLOCK * WIDE, CORES * machines)
        if machines == 1:
            return self.calibrate / min(WIDE, CORES)
        return max(self.calibrate / cores, 2 * self.moments / NETWORK)

    def decomposed(self, machines: int) -> float:
        """Seconds: all weights side by side, at least the largest one, or the network."""
        network = 0 if machines == 1 else self.through / NETWORK
        return max(self.decompose / (CORES * machines), self.largest, network)

    @property
    def through(self) -> float:
        """Bytes: H and weights out and codes back, where nothing is shared."""
        return self.hessians + self.weights * (BF16 + CODES)


def network_share(costs: Costs) -> float:
    """The network's part of the time of calibration on as many cores as it can use."""
    return 2 * costs.moments / NETWORK / (costs.calibrate / (RUNS_OF_BLOCK * WIDE))


def page() -> str:
    """The page as it should be."""
    measured = json.loads((RESULTS / "cluster_costs.json").read_text())
    found = [Costs.of(model, measured) for model in MODELS]
    runs = json.loads((RESULTS / "cluster.json").read_text())
    largest = max(measured["decompose"], key=lambda row: row["rows"] * row["columns"])
    return TEXT.format(
        overhead="\n".join(overhead.table(runs)),
        largest=f"{largest['rows']} × {largest['columns']}",
        runs_cores=RUNS_OF_BLOCK * WIDE,
        share=round(1 / max(map(network_share, found))),
        codes=CODES,
        measured="\n".join(markdown(_measured(measured))),
        facts="\n".join(markdown(_facts(found))),
        times="\n".join(markdown(_times(found))),
        rate=f"{rate(measured['calibrate']) / 1e9:.1f}",
        cores=CORES,
        runs=RUNS_OF_BLOCK,
        wide=WIDE,
    )


def _measured(found: dict[str, Any]) -> list[list[str]]:
    seconds = fit(found["decompose"])
    rows = [["weight", "seconds of a core", "a million weights", "by the formula"]]
    for row in found["decompose"]:
        out, n = row["rows"], row["columns"]
        million = row["seconds"] / (out * n / 1e6)
        rows.append(
            [f"{out} × {n}", f"{row['seconds']:.1f}", f"{million:.1f}", f"{seconds((out, n)):.1f}"]
        )
    return rows


def _facts(found: Sequence[Costs]) -> list[list[str]]:
    rows = [["", *(one.model.short for one in found)]]
    lines: list[tuple[str, Callable[[Costs], str]]] = [
        ("weights in blocks", lambda c: f"{c.model.weights / 1e9:.1f}·10⁹"),
        ("tokens of calibration (default)", lambda c: f"{c.model.tokens / 1e6:.2f} million"),
        ("calibrate, hours of a core", lambda c: f"{c.calibrate / 3600:,.0f}"),
        ("decompose, hours of a core", lambda c: f"{c.decompose / 3600:,.0f}"),
        ("largest weight, hours of a core", lambda c: f"{c.largest / 3600:.1f}"),
        ("disk: H of all blocks", lambda c: f"{c.hessians / 1e12:.1f} TB"),
        ("disk: results of decompose", lambda c: f"{CODES * c.weights / 1e9:,.0f} GB"),
        ("memory: one H in float64", lambda c: f"{DOUBLE * c.model.inner**2 / 1e9:.1f} GB"),
        (
            "network: sums of calibration, out and back",
            lambda c: f"{2 * c.moments / 1e12:.0f} TB, {2 * c.moments / NETWORK / 3600:.0f} h",
        ),
        (
            "network: H and weights out, codes back",
            lambda c: f"{c.through / 1e12:.1f} TB, {c.through / NETWORK / 3600:.1f} h",
        ),
    ]
    return rows + [[label, *(say(one) for one in found)] for label, say in lines]


def _times(found: Sequence[Costs]) -> list[list[str]]:
    header = ["machines", *(f"{c.model.short}: {what}" for c in found for what in STAGES)]
    rows = [header]
    for machines in MACHINES:
        cells = [
            f"{seconds / 3600:,.1f} h"
            for costs in found
            for seconds in (costs.calibrated(machines), costs.decomposed(machines))
        ]
        rows.append([str(machines), *cells])
    return rows


STAGES = ("calibrate", "decompose")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
