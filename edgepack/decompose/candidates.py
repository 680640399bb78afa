"""What every weight would cost in every format and rank: measured, on held-out tokens.

The KL that an error E = W − Q − L·R adds is ½·tr(H_out E H Eᵀ)/out, H and H_out from tokens that
rounding has not seen. Q is made as it will be made (error feedback at one damping); for ranks, the
best correction of that Q in closed form, in float32: the alternation that follows only lowers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from edgepack import plugins
from edgepack.cache import atomic
from edgepack.calibration.moments import weight_hessian
from edgepack.decoder import Decoder
from edgepack.decompose._side_by_side import side_by_side
from edgepack.decompose.ldlq import Metric, ldlq, metric
from edgepack.decompose.low_rank import exact_low_rank
from edgepack.errors import while_doing
from edgepack.formats._affine import Affine
from edgepack.formats._base import Format
from edgepack.progress import Progress, Steps
from edgepack.weights import Hessian, QuantizedTensor, WeightSpec, quadratic_cost

RANKED_BELOW = 4.0
"""Bits per weight of Q; from there on ranks are not tried: a finer Q is the cheaper correction."""

ROWS = 8192
"""Of a larger matrix with independent rows, about so many are tried."""

Costs = dict[str, dict[int, float]]
"""Format → rank → KL in nats a token."""


@dataclass(frozen=True)
class Search:
    """What is tried: formats of each weight, ranks (0 always), and the damping of H."""

    formats: Mapping[str, Sequence[str]]
    ranks: Sequence[int]
    damping: float


def load_costs(folder: Path, name: str) -> Costs:
    """The measured costs of a weight."""
    found = json.loads((folder / f"{name}.json").read_text())
    return {f: {int(rank): cost for rank, cost in by.items()} for f, by in found.items()}


def measure_candidates(
    decoder: Decoder, search: Search, hessians: Path, folder: Path
) -> Steps[None]:
    """Write one file of costs per weight into `folder`, leaving out those already there."""
    specs = [decoder.checkpoint.specs[name] for name in search.formats]
    total = sum(s.numel * len(search.formats[s.name]) for s in specs)
    missing = [s for s in specs if not (folder / f"{s.name}.json").exists()]
    done = total - sum(s.numel * len(search.formats[s.name]) for s in missing)
    measure = partial(_measure, decoder, search, hessians, folder)
    for spec in side_by_side(measure, missing):
        formats = len(search.formats[spec.name])
        label = f"{spec.name.removesuffix('.weight')} in {formats} formats"
        yield Progress("allocate", done, total, label)
        done += spec.numel * formats


def _measure(
    decoder: Decoder, search: Search, hessians: Path, folder: Path, spec: WeightSpec
) -> None:
    with while_doing(f"trying formats for {spec.name}"):
        H = weight_hessian(hessians, spec, tied=decoder.dimensions.tie_word_embeddings)
        checkpoint = decoder.checkpoint
        stored = checkpoint.quantized(spec.name)
        trial = _Trial(checkpoint.tensor(spec.name), H, search)
        costs = {
            name: {0: 0.0}
            if stored is not None and stored.format == name
            else trial.costs(plugins.find("formats", name), ranked=spec.block is not None)
            for name in search.formats[spec.name]
        }
        with atomic(folder / f"{spec.name}.json") as path:
            path.write_text(json.dumps(costs, indent=1))


class _Trial:
    """One weight, rounded again and again; metrics are kept for formats that share blocks.

    Of a matrix whose rows are independent (a vocabulary), evenly spread rows stand for all.
    """

    def __init__(self, W: Tensor, H: Hessian, search: Search) -> None:
        self.search = search
        step = -(-len(W) // ROWS) if H.out_train is None or H.out_train.dim() == 1 else 1
        self.W, self.H = W[::step], _some_rows(H, step)
        whole, tried = _cost(W, H), _cost(self.W, self.H)
        self.kl = whole / max(tried, 1e-300) / (2 * len(W))  # nats a token, of a cost of 1
        self.metrics: dict[tuple[int, int], Metric] = {}

    def costs(self, fmt: Format, *, ranked: bool) -> dict[int, float]:
        """Rank → KL of one format."""
        E = self.W - self._rounded(fmt).dequantize()
        P = _weighted(E, self.H)
        costs = {0: float((P * E).sum())}
        ranks = [r for r in self.search.ranks if 0 < r < min(E.shape)]
        if ranks and ranked and fmt.bits_per_weight < RANKED_BELOW:
            L, R = exact_low_rank(E, self.H.train, max(ranks), self.H.out_train)
            costs |= _corrected(costs[0], P, L.float(), R.float(), self.H, ranks)
        return {rank: self.kl * cost for rank, cost in costs.items()}

    def _rounded(self, fmt: Format) -> QuantizedTensor:
        if not isinstance(fmt, Affine):
            return fmt.quantize(self.W, self.H.train.diagonal())
        key = fmt.block_size, fmt.group
        if key not in self.metrics:
            damping = self.search.damping
            self.metrics[key] = metric(
                self.H.train, fmt.block_size, damping, self.H.out_train, fmt.group
            )
        return ldlq(self.W, self.metrics[key], fmt)


def _weighted(E: Tensor, H: Hessian) -> Tensor:
    """H_out E H on held-out tokens; its product with E, summed, is the cost of E."""
    return _out_side(E @ H.held_out, H)


def _out_side(X: Tensor, H: Hessian) -> Tensor:
    """H_out X on held-out tokens."""
    out = H.out_held_out
    if out is None:
        return X
    return out @ X if out.dim() == 2 else out[:, None] * X


def _corrected(
    cost: float, P: Tensor, L: Tensor, R: Tensor, H: Hessian, ranks: Sequence[int]
) -> dict[int, float]:
    """Rank → cost of E − L·R with the leading columns of L and rows of R, where P = H_out E H and
    `cost` is that of E: tr(H_out (E−LR) H (E−LR)ᵀ) multiplied out."""
    gain = (L.T @ P * R).sum(1)
    square = (L.T @ _out_side(L, H)) * (R @ H.held_out @ R.T)
    return {r: cost - 2 * float(gain[:r].sum()) + float(square[:r, :r].sum()) for r in ranks}


def _some_rows(H: Hessian, step: int) -> Hessian:
    if step == 1 or H.out_train is None or H.out_held_out is None:
        return H
    return replace(H, out_train=H.out_train[::step], out_held_out=H.out_held_out[::step])


def _cost(E: Tensor, H: Hessian) -> float:
    return quadratic_cost(E, H.held_out, H.out_held_out)
