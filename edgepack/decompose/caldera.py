"""CALDERA: W ≈ Q + L·R by alternation, each weight in the metric of its own H.

Saha, Srivastava, Pilanci: "Compressing Large Language Models using Low Rank and Low Precision
Decomposition", arXiv 2405.18886, algorithm 1: L·R first, then Q, in turns. Three departures: Q is
rounded onto a stock block format in the down-dated metric. L and R are fitted once more at the end,
because Q was rounded in a metric that assumes they will be. Held-out tokens, not the calibration
tokens, choose the damping and the best iterate, and decide whether it beats plain rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from edgepack.core.weights import FactoredWeight, Hessian, QuantizedTensor, relative_error
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.decompose.low_rank import downdate, low_rank
from edgepack.formats._affine import Affine
from edgepack.formats._limits import check_finite, losses
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
    original, W = W, W.clamp(-fmt.largest, fmt.largest)
    found = _closest(W, H, fmt, rank, factors, damping, iterations)
    counted = losses(original, found.weight.dense(), found.weight.Q)
    return replace(found, clipped=counted.clipped, lost=counted.lost)


def check_problem(W: Tensor, H: Hessian) -> None:
    """Refuse a weight or Hessians with NaN or infinity before anything is computed from them."""
    check_finite("the weight", W)
    for what, side in (
        ("the Hessian", H.train),
        ("the Hessian of held-out tokens", H.held_out),
        ("the Hessian of outputs", H.out_train),
        ("the Hessian of outputs on held-out tokens", H.out_held_out),
    ):
        check_finite(what, side)


def _closest(
    W: Tensor,
    H: Hessian,
    fmt: Format,
    rank: int,
    factors: str,
    damping: Sequence[float],
    iterations: int,
) -> Decomposition:
    plain = FactoredWeight(fmt.quantize(W, H.train.diagonal()))
    error_plain = relative_error(W, plain.dense(), H.held_out, H.out_held_out)
    if not isinstance(fmt, Affine):
        return _plainly(W, H, plain, rank, factors, error_plain)
    best, chosen = _round(W, H, fmt, damping)
    if rank:
        best = _alternate(W, H, fmt, best, rank, factors, chosen, iterations)
    found = _judged(W, H, best, error_plain, chosen, "caldera" if rank else "ldlq")
    if found.error <= error_plain:
        return found
    return _plainly(W, H, plain, rank, factors, error_plain)


def _plainly(
    W: Tensor, H: Hessian, plain: FactoredWeight, rank: int, factors: str, error_plain: float
) -> Decomposition:
    """Plain rounding, with the best L·R of the rank that was asked for: files have room for it."""
    if not rank:
        return _judged(W, H, plain, error_plain, None, "plain")
    pair = low_rank(W - plain.dense(), H.train, rank, factors, H.out_train)
    return _judged(W, H, FactoredWeight(plain.Q, *pair), error_plain, None, "corrected")


def _judged(
    W: Tensor,
    H: Hessian,
    weight: FactoredWeight,
    error_plain: float,
    damping: float | None,
    method: str,
) -> Decomposition:
    dense = weight.dense()
    held_out = relative_error(W, dense, H.held_out, H.out_held_out)
    train = relative_error(W, dense, H.train, H.out_train)
    return Decomposition(weight, held_out, train, error_plain, damping, method)


def _round(
    W: Tensor, H: Hessian, fmt: Affine, damping: Sequence[float]
) -> tuple[FactoredWeight, float]:
    """LDLQ at every damping: the result with the least held-out error, and its damping."""
    metrics = {d: metric(H.train, fmt.block_size, d, H.out_train, fmt.group) for d in damping}
    found = {d: FactoredWeight(ldlq(W, m, fmt)) for d, m in metrics.items()}
    best = min(found, key=lambda d: _held_out(W, found[d], H))
    return found[best], best


def _held_out(W: Tensor, weight: FactoredWeight, H: Hessian) -> float:
    return relative_error(W, weight.dense(), H.held_out, H.out_held_out)


def _alternate(
    W: Tensor,
    H: Hessian,
    fmt: Affine,
    start: FactoredWeight,
    rank: int,
    factors: str,
    damping: float,
    iterations: int,
) -> FactoredWeight:
    """Rounds of Q ← ldlq(W − L·R) and L·R ← low_rank(W − Q), starting from the L·R of W itself. The
    result is the best on held-out tokens of all rounds, and of `start` with the L·R for it."""

    rest = W - start.Q.dequantize()
    candidates = [FactoredWeight(start.Q, *low_rank(rest, H.train, rank, factors, H.out_train))]
    L, R = low_rank(W, H.train, rank, factors, H.out_train)
    for _ in range(iterations):
        Q, L, R = next_round(W, H, fmt, L, R, factors, damping)
        candidates.append(FactoredWeight(Q, L, R))
    return min(candidates, key=lambda c: _held_out(W, c, H))


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
    free = downdate(H.train, R.dequantize())
    down = metric(free, fmt.block_size, damping, H.out_train, fmt.group)
    Q = ldlq(W - L.dequantize() @ R.dequantize(), down, fmt)
    rest = W - Q.dequantize()
    return Q, *low_rank(rest, H.train, L.shape[1], factors, H.out_train)
