"""Cost of every weight in every format and rank, measured on held-out tokens.

An error E = W − Q − L·R adds the KL ½·tr(H_out E H Eᵀ)/out; H and H_out come from tokens that
rounding does not use. Q is made as in `decompose` (error feedback, at one damping). With a rank, Q,
L and R come from one round of CALDERA; later rounds only lower the cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from edgepack import formats
from edgepack.calibration.moments import weight_hessian
from edgepack.checkpoint import Checkpoint
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.weights import (
    FactoredWeight,
    Hessian,
    QuantizedTensor,
    WeightSpec,
    quadratic_cost,
)
from edgepack.decompose.caldera import check_problem, next_round
from edgepack.decompose.ldlq import Metric, ldlq, metric
from edgepack.decompose.low_rank import low_rank
from edgepack.errors import while_doing
from edgepack.formats._affine import Affine
from edgepack.formats._limits import LARGEST
from edgepack.formats.base import Format

MAX_BITS_FOR_RANKS = 3.0
"""Bits per weight of Q at and above which ranks are not tried, because a finer Q corrects more per
byte (`benchmarks/controls.py`)."""

ROWS = 8192
"""Most rows that are tried of a matrix whose rows are independent."""

Costs = dict[str, dict[int, float]]
"""Format → rank → KL in nats a token."""


@dataclass(frozen=True)
class Search:
    """Choices to measure: formats of each weight, ranks (always with 0), the format of L and R, and
    the damping of H."""

    formats: Mapping[str, Sequence[str]]
    ranks: Sequence[int]
    factors: str
    damping: float


def load_costs(folder: Path, name: str) -> Costs:
    """The measured costs of a weight."""
    found = json.loads((folder / f"{name}.json").read_text())
    return {f: {int(rank): cost for rank, cost in by.items()} for f, by in found.items()}


@dataclass(frozen=True)
class Item:
    """One weight to measure, from the Hessians in folder `hessians` into the folder `folder`."""

    model: Checkpoint
    name: str
    formats: tuple[str, ...]
    ranks: tuple[int, ...]
    factors: str
    damping: float
    hessians: Path
    folder: Path
    exact: str | None = None
    """A format that holds the weight as it is."""

    @property
    def spec(self) -> WeightSpec:
        """Description of the weight."""
        return self.model.specs[self.name]

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.folder / f"{self.name}.json"

    @property
    def work(self) -> int:
        """Relative duration, for the progress bar."""
        return self.spec.numel * len(self.formats)


def measure_costs(items: Sequence[Item], executor: Executor) -> Steps[None]:
    """Write one file of costs per weight; files that exist are not written again."""
    total = sum(item.work for item in items)
    missing = [item for item in items if not item.path.exists()]
    done = total - sum(item.work for item in missing)
    for item in executor.map(measure_weight, missing):
        label = f"{item.name.removesuffix('.weight')} in {len(item.formats)} formats"
        yield Progress("allocate", done, total, label)
        done += item.work


def measure_weight(item: Item) -> None:
    """Write the file of one weight's costs."""
    with while_doing(f"trying formats for {item.name}"):
        model, spec = item.model, item.spec
        H = weight_hessian(item.hessians, spec, tied=model.dimensions.tie_word_embeddings)
        stored = model.quantized(spec.name)
        trial = _Trial(model.tensor(spec.name), H, item)
        costs = {
            name: {0: 0.0}
            if name == item.exact or (stored is not None and stored.format == name)
            else trial.costs(formats.get(name), with_ranks=spec.block is not None)
            for name in dict.fromkeys((*item.formats, *([item.exact] if item.exact else [])))
        }
        with atomic(item.path) as path:
            path.write_text(json.dumps(costs, indent=1))


class _Trial:
    """One weight that is rounded many times; metrics are reused by formats with the same blocks.

    Of a matrix whose rows are independent (a vocabulary), only evenly spread rows are rounded.
    """

    def __init__(self, W: Tensor, H: Hessian, item: Item) -> None:
        check_problem(W, H)
        self.item = item
        W = W.clamp(-LARGEST, LARGEST)
        step = -(-len(W) // ROWS) if H.out_train is None or H.out_train.dim() == 1 else 1
        self.W, self.H = W[::step], _some_rows(H, step)
        whole, tried = _cost(W, H), _cost(self.W, self.H)
        share = whole / tried if tried > 0 else float(step)
        self.kl = share / (2 * len(W))  # nats a token per unit of cost
        self.metrics: dict[tuple[int, int], Metric] = {}
        self.first: dict[int, tuple[QuantizedTensor, QuantizedTensor]] = {}

    def costs(self, fmt: Format, *, with_ranks: bool) -> dict[int, float]:
        """Rank → KL of one format."""
        found = {0: _cost(self.W - self._rounded(fmt).dequantize(), self.H)}
        if with_ranks and isinstance(fmt, Affine) and fmt.bits_per_weight < MAX_BITS_FOR_RANKS:
            ranks = [r for r in self.item.ranks if 0 < r < min(self.W.shape)]
            found |= {rank: _cost(self._left_over(fmt, rank), self.H) for rank in ranks}
        return {rank: self.kl * cost for rank, cost in found.items()}

    def _rounded(self, fmt: Format) -> QuantizedTensor:
        if not isinstance(fmt, Affine):
            return fmt.quantize(self.W, self.H.train.diagonal())
        key = fmt.block_size, fmt.group
        if key not in self.metrics:
            damping = self.item.damping
            self.metrics[key] = metric(
                self.H.train, fmt.block_size, damping, self.H.out_train, fmt.group
            )
        return ldlq(self.W, self.metrics[key], fmt)

    def _left_over(self, fmt: Affine, rank: int) -> Tensor:
        """W − Q − L·R after one round of CALDERA."""
        W, H, how = self.W, self.H, self.item
        if rank not in self.first:
            self.first[rank] = low_rank(W, H.train, rank, how.factors, H.out_train)
        found = next_round(W, H, fmt, *self.first[rank], how.factors, how.damping)
        return W - FactoredWeight(*found).dense()


def _some_rows(H: Hessian, step: int) -> Hessian:
    if step == 1 or H.out_train is None or H.out_held_out is None:
        return H
    return replace(H, out_train=H.out_train[::step], out_held_out=H.out_held_out[::step])


def _cost(E: Tensor, H: Hessian) -> float:
    return quadratic_cost(E, H.held_out, H.out_held_out)
