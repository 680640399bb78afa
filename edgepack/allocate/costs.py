"""Cost of every weight in every format and rank, measured on held-out tokens.

An error E = W − Q − L·R adds the KL ½·tr(H_out E H Eᵀ)/out; H and H_out come from tokens that
rounding does not use. Q is made as in `decompose` (error feedback, at one damping). With a rank, Q,
L and R come from one round of CALDERA; later rounds only lower the cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from edgepack import formats
from edgepack.calibration.moments import hessian_files, weight_hessian
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.travel import Part
from edgepack.core.weight_files import damaged_error
from edgepack.core.weights import (
    FactoredWeight,
    Hessian,
    QuantizedTensor,
    WeightSpec,
    quadratic_cost,
)
from edgepack.decompose.caldera import check_problem, free_metric, needed_memory, refit
from edgepack.decompose.ldlq import ldlq, metric
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
_COSTS: TypeAdapter[Costs] = TypeAdapter(Costs)


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
    path = folder / f"{name}.json"
    try:
        return _COSTS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged_error(path, error) from None


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
    device: torch.device = CPU

    @property
    def spec(self) -> WeightSpec:
        """Description of the weight."""
        return self.model.specs[self.name]

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.folder / f"{self.name}.json"

    def writes(self) -> tuple[Path]:
        """The file."""
        return (self.path,)

    def reads(self) -> list[Part]:
        """Its Hessian."""
        return hessian_files(
            self.hessians, self.spec, tied=self.model.dimensions.tie_word_embeddings
        )

    def weights(self) -> tuple[str]:
        """The weight itself."""
        return (self.name,)

    @property
    def memory(self) -> int:
        """Bytes that the work takes; of a matrix outside the blocks some rows are tried."""
        rank = max(self.ranks, default=0)
        inside = self.spec.block is not None
        whole = 0 if inside else 4 * self.spec.numel
        rows = self.spec.shape[0] if inside else min(self.spec.shape[0], ROWS)
        shape = (rows, self.spec.shape[1])
        return whole + needed_memory(shape, rank=rank if inside else 0, two_sided=inside)

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
        every = list(dict.fromkeys((*item.formats, *([item.exact] if item.exact else []))))
        held = {item.exact, None if stored is None else stored.format}
        trial = _Trial(model.tensor(spec.name).to(item.device), H.to(item.device), item)
        tried = [formats.get(name) for name in every if name not in held]
        found = trial.costs(tried, with_ranks=spec.block is not None)
        costs = {name: found.get(name, {0: 0.0}) for name in every}
        with atomic(item.path) as path:
            path.write_text(json.dumps(costs, indent=1))


class _Trial:
    """One weight that is rounded many times. Formats with the same blocks share a metric; one
    metric is in memory at a time, because that of a wide weight takes gigabytes.

    Of a matrix whose rows are independent (a vocabulary), only evenly spread rows are rounded.
    """

    def __init__(self, W: Tensor, H: Hessian, item: Item) -> None:
        check_problem(W, H)
        self.item = item
        W = W.clamp(-LARGEST, LARGEST)
        step = -(-len(W) // ROWS) if H.out_train is None or H.out_train.dim() == 1 else 1
        self.W, self.H = W[::step].contiguous(), _some_rows(H, step)
        whole, tried = _cost(W, H), _cost(self.W, self.H)
        share = whole / tried if tried > 0 else float(step)
        self.kl = share / (2 * len(W))  # nats a token per unit of cost

    def costs(self, fmts: Sequence[Format], *, with_ranks: bool) -> Costs:
        """Format → rank → KL."""
        alike: dict[tuple[int, int], list[Affine]] = {}
        found: Costs = {}
        for fmt in fmts:
            if isinstance(fmt, Affine):
                alike.setdefault((fmt.block_size, fmt.group), []).append(fmt)
            else:
                Q = fmt.quantize_anywhere(self.W, self.H.train.diagonal())
                found[fmt.name] = {0: self._kl(FactoredWeight(Q))}
        for several in alike.values():
            self._at_rank_0(several, found)
        if not with_ranks:
            return found
        for rank in [r for r in self.item.ranks if 0 < r < min(self.W.shape)]:
            first = None
            for several in alike.values():
                if few := [f for f in several if f.bits_per_weight < MAX_BITS_FOR_RANKS]:
                    first = first or self._factors(rank)
                    self._with_factors(few, *first, found)
        return found

    def _at_rank_0(self, alike: Sequence[Affine], found: Costs) -> None:
        H, fmt = self.H, alike[0]
        shared = metric(H.train, fmt.block_size, self.item.damping, H.out_train, fmt.group)
        rounded = {fmt.name: ldlq(self.W, shared, fmt) for fmt in alike}
        del shared
        found |= {name: {0: self._kl(FactoredWeight(Q))} for name, Q in rounded.items()}

    def _factors(self, rank: int) -> tuple[QuantizedTensor, QuantizedTensor]:
        return low_rank(self.W, self.H.train, rank, self.item.factors, self.H.out_train)

    def _with_factors(
        self, alike: Sequence[Affine], L: QuantizedTensor, R: QuantizedTensor, found: Costs
    ) -> None:
        """The costs after one round of CALDERA that starts from L·R."""
        W, H, rank = self.W, self.H, L.shape[1]
        shared = free_metric(H, alike[0], R, self.item.damping)
        rest = W - L.dequantize() @ R.dequantize()
        rounded = {fmt.name: ldlq(rest, shared, fmt) for fmt in alike}
        del shared, rest
        for name, Q in rounded.items():
            weight = FactoredWeight(Q, *refit(W, H, Q, rank, self.item.factors))
            found[name][rank] = self._kl(weight)

    def _kl(self, weight: FactoredWeight) -> float:
        return self.kl * _cost(self.W - weight.dense(), self.H)


def _some_rows(H: Hessian, step: int) -> Hessian:
    if step == 1 or H.out_train is None or H.out_held_out is None:
        return H
    sides = H.out_train[::step], H.out_held_out[::step]
    return Hessian(H.train, H.held_out, H.imatrix, *sides)


def _cost(E: Tensor, H: Hessian) -> float:
    return quadratic_cost(E, H.held_out, H.out_held_out)
