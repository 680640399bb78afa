"""CALDERA: W ≈ Q + L·R by alternation, each weight in the metric of its own H.

Saha, Srivastava, Pilanci: "Compressing Large Language Models using Low Rank and Low Precision
Decomposition", arXiv 2405.18886, algorithm 1: L·R first, then Q, in turns. Three departures: Q is
rounded onto a stock block format in the down-dated metric. L and R are fitted once more at the end,
because Q was rounded in a metric that assumes they will be. Held-out tokens, not the calibration
tokens, choose the damping and the best iterate, and decide whether it beats plain rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from edgepack.core.weights import (
    FactoredWeight,
    Hessian,
    QuantizedTensor,
    quadratic_cost,
    row_slices,
)
from edgepack.decompose.ldlq import Metric, ldlq, metric
from edgepack.decompose.low_rank import downdate, low_rank
from edgepack.formats._affine import Affine
from edgepack.formats._limits import Losses, check_finite, losses
from edgepack.formats.base import Format


@dataclass(frozen=True)
class Decomposition:
    """A factored weight and its errors.

    Errors are ‖(W−Q−LR)H^½‖²/‖WH^½‖². `method` is the candidate with the least held-out error:
    ``caldera`` (or ``ldlq`` at rank 0), ``plain`` rounding, ``corrected`` (that with factors), or
    ``source`` (the source stores it in this format). A weight always has the rank that was asked
    for. `clipped` and `lost` count values that float16 scales cannot hold
    (`formats._limits.Losses`).
    """

    weight: FactoredWeight
    error: float
    error_train: float
    error_plain: float
    damping: float | None
    method: str
    clipped: int = 0
    lost: int = 0


def caldera(
    W: Tensor,
    H: Hessian,
    fmt: Format,
    *,
    rank: int,
    factors: str,
    damping: Sequence[float],
    iterations: int,
    source: QuantizedTensor | None = None,
) -> Decomposition:
    """Decompose W ``[out, in]``. `source` is W as the checkpoint stores it, if in one of our
    formats; where that is `fmt` and the rank is 0, it is taken as it is."""
    check_problem(W, H)
    if source is not None and source.format == fmt.name and rank == 0:
        return Decomposition(FactoredWeight(source), 0.0, 0.0, 0.0, None, "source")
    held = (
        W
        if -fmt.largest <= float(W.min()) and float(W.max()) <= fmt.largest
        else W.clamp(-fmt.largest, fmt.largest)
    )
    found = _closest(held, H, fmt, rank, factors, damping, iterations)
    counted = _losses(W, found.weight)
    return replace(found, clipped=counted.clipped, lost=counted.lost)


def _losses(W: Tensor, weight: FactoredWeight) -> Losses:
    """`losses` of all rows, of which some are multiplied out at a time."""
    found = [
        losses(W[rows], part.dense(), part.Q)
        for rows in row_slices(tuple(W.shape))
        for part in (weight.permute_rows(rows),)
    ]
    return Losses(sum(f.clipped for f in found), sum(f.lost for f in found))


def needed_memory(shape: tuple[int, ...], *, rank: int, two_sided: bool) -> int:
    """Most bytes that `caldera` takes for a weight ``[out, in]`` (`benchmarks/scale.py` measures
    them): W with copies, and squares of both sides, of which one is float64 for a time."""
    rows, columns = shape
    W, S = FLOAT * rows * columns, FLOAT * columns**2
    S_out = FLOAT * rows**2 if two_sided else 0
    factoring = max((5 if rank else 4) * S + S_out, (4 if rank else 3) * S + 4 * S_out) + 4 * W
    rounding = 3 * S + 3 * S_out + (9 * W if two_sided else 4 * W)
    return max(factoring, rounding) + ROOM


FLOAT = 4
ROOM = 256 << 20
"""Bytes of slabs and of what is computed at once of a weight whose rows are independent."""


def check_problem(W: Tensor, H: Hessian) -> None:
    """Refuse a weight or Hessians with NaN or infinity before anything is computed from them."""
    check_finite("the weight", W)
    for side, what in SIDES.items():  # one is in memory at a time
        check_finite(f"the Hessian{what}", getattr(H, side))


SIDES = {
    "train": "",
    "held_out": " of held-out tokens",
    "out_train": " of outputs",
    "out_held_out": " of outputs on held-out tokens",
}
"""Field of a `Hessian` → its name in errors, after "the Hessian"."""


class _Judge:
    """Errors of candidates for one weight. Matrices of held-out tokens are read for a judgement
    (`Hessian`), and W's own costs are computed once."""

    def __init__(self, W: Tensor, H: Hessian) -> None:
        self.W, self.H = W, H

    def held_out(self, weight: FactoredWeight) -> float:
        """The error that chooses."""
        return self._cost(self._rest(weight), True) / self._whole_held_out

    def train(self, weight: FactoredWeight) -> float:
        """The error on calibration tokens."""
        return self._cost(self._rest(weight), False) / self._whole_train

    @cached_property
    def _whole_held_out(self) -> float:
        return max(self._cost(self.W.__getitem__, True), 1e-300)

    @cached_property
    def _whole_train(self) -> float:
        return max(self._cost(self.W.__getitem__, False), 1e-300)

    def _rest(self, weight: FactoredWeight) -> Callable[[slice], Tensor]:
        return lambda rows: self.W[rows] - weight.permute_rows(rows).dense()

    def _cost(self, error: Callable[[slice], Tensor], held_out: bool) -> float:
        """`quadratic_cost` of an error that is given by rows; of independent rows, some are made at
        a time."""
        H = self.H.held_out if held_out else self.H.train
        out = self.H.out_held_out if held_out else self.H.out_train
        if out is not None and out.dim() == 2:
            return quadratic_cost(error(slice(None)), H, out)
        slices = row_slices(tuple(self.W.shape))
        return sum(quadratic_cost(error(s), H, None if out is None else out[s]) for s in slices)


def _closest(
    W: Tensor,
    H: Hessian,
    fmt: Format,
    rank: int,
    factors: str,
    damping: Sequence[float],
    iterations: int,
) -> Decomposition:
    judge = _Judge(W, H)
    plain = FactoredWeight(fmt.quantize_anywhere(W, H.train.diagonal()))
    error_plain = judge.held_out(plain)
    if not isinstance(fmt, Affine):
        return _plainly(judge, plain, rank, factors, error_plain)
    best, chosen = _round(judge, fmt, damping)
    if rank:
        best = _alternate(judge, fmt, best, rank, factors, chosen, iterations)
    found = _judged(judge, best, error_plain, chosen, "caldera" if rank else "ldlq")
    if found.error <= error_plain:
        return found
    return _plainly(judge, plain, rank, factors, error_plain)


def _plainly(
    judge: _Judge, plain: FactoredWeight, rank: int, factors: str, error_plain: float
) -> Decomposition:
    """Plain rounding, with the best L·R of the rank that was asked for: files have room for it."""
    if not rank:
        return _judged(judge, plain, error_plain, None, "plain")
    pair = refit(judge.W, judge.H, plain.Q, rank, factors)
    return _judged(judge, FactoredWeight(plain.Q, *pair), error_plain, None, "corrected")


def _judged(
    judge: _Judge, weight: FactoredWeight, error_plain: float, damping: float | None, method: str
) -> Decomposition:
    held_out, train = judge.held_out(weight), judge.train(weight)
    return Decomposition(weight, held_out, train, error_plain, damping, method)


def _round(judge: _Judge, fmt: Affine, damping: Sequence[float]) -> tuple[FactoredWeight, float]:
    """LDLQ at every damping, one after the other: the result with the least held-out error, and its
    damping."""
    W, H = judge.W, judge.H
    found = {}
    for d in damping:
        rounded = ldlq(W, metric(H.train, fmt.block_size, d, H.out_train, fmt.group), fmt)
        found[d] = FactoredWeight(rounded)
    if len(found) == 1:
        return found[damping[0]], damping[0]
    best = min(found, key=lambda d: judge.held_out(found[d]))
    return found[best], best


def _alternate(
    judge: _Judge,
    fmt: Affine,
    start: FactoredWeight,
    rank: int,
    factors: str,
    damping: float,
    iterations: int,
) -> FactoredWeight:
    """Rounds of Q ← ldlq(W − L·R) and L·R ← low_rank(W − Q), starting from the L·R of W itself. The
    result is the best on held-out tokens of all rounds, and of `start` with the L·R for it."""
    W, H = judge.W, judge.H
    candidates = [FactoredWeight(start.Q, *refit(W, H, start.Q, rank, factors))]
    L, R = low_rank(W, H.train, rank, factors, H.out_train)
    for _ in range(iterations):
        Q, L, R = next_round(W, H, fmt, L, R, factors, damping)
        candidates.append(FactoredWeight(Q, L, R))
    return min(candidates, key=judge.held_out)


def next_round(
    W: Tensor,
    H: Hessian,
    fmt: Affine,
    L: QuantizedTensor,
    R: QuantizedTensor,
    factors: str,
    damping: float,
) -> tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor]:
    """Q for W − L·R in the metric down-dated by R, then L and R for W − Q."""
    down = free_metric(H, fmt, R, damping)
    Q = ldlq(W - L.dequantize() @ R.dequantize(), down, fmt)
    del down  # of a wide weight it takes gigabytes
    return Q, *refit(W, H, Q, L.shape[1], factors)


def free_metric(H: Hessian, fmt: Affine, R: QuantizedTensor, damping: float) -> Metric:
    """The metric of Q's error where L will be fitted anew for R."""
    free = downdate(H.train, R.dequantize())
    return metric(free, fmt.block_size, damping, H.out_train, fmt.group)


def refit(
    W: Tensor, H: Hessian, Q: QuantizedTensor, rank: int, factors: str
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """L and R for what Q leaves of W."""
    return low_rank(W - Q.dequantize(), H.train, rank, factors, H.out_train)
