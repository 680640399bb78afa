"""The weight that several models disagree with least, each in the metric of its own text.

Model i loses w_i · tr(G_i (W − W_i) H_i (W − W_i)ᵀ) when its weight W_i is replaced by W: H is the
second moment of the weight's inputs, G that of the gradients at its outputs (the identity where it
is not known). The sum over all models is minimal where Σ w_i G_i (W − W_i) H_i = 0.

- Without G that is RegMean (Jin et al., arXiv 2212.09849, eq. 2), solved directly.
- With G it is a generalized Sylvester equation, solved by conjugate gradients.
- With diagonal G and H it is Fisher merging (Matena & Raffel, arXiv 2111.09832, eq. 3).

The unknown is D = W − W̄, W̄ the plain weighted mean, and all is written in E_i = W_i − W̄. A ridge
δ·μ·‖D‖² pulls towards W̄, where μ is the mean of the metric's diagonal: δ has no unit. What no
text has seen (a direction that all H miss) so stays at the plain mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgepack.core.linalg import solve_up_to_rounding


@dataclass(frozen=True)
class Term:
    """What one model has to say of a weight: E ``[out, in]``, its difference to the plain mean, H
    ``[in, in]``, G ``[out, out]`` or None for the identity, and how much the model counts."""

    E: Tensor
    H: Tensor
    G: Tensor | None
    weight: float

    def to(self, dtype: torch.dtype) -> Term:
        """With tensors of another type."""
        G = None if self.G is None else self.G.to(dtype)
        return replace(self, E=self.E.to(dtype), H=self.H.to(dtype), G=G)

    def times(self, X: Tensor) -> Tensor:
        """w·G·X·H."""
        product = X @ self.H if self.G is None else self.G @ X @ self.H
        return product.mul_(self.weight)

    @property
    def scale(self) -> float:
        """Mean of the diagonal of w·G ⊗ H."""
        side = 1.0 if self.G is None else float(self.G.diagonal().mean())
        return self.weight * side * float(self.H.diagonal().mean())


def cost(D: Tensor, terms: Sequence[Term]) -> float:
    """Σ w_i · tr(G_i (D − E_i) H_i (D − E_i)ᵀ), the ridge left out."""
    total = 0.0
    for term in terms:
        R = D - term.E
        total += float((term.times(R) * R).sum(dtype=torch.float64))
    return max(total, 0.0)


def closed_form(terms: Sequence[Term], damping: float) -> Tensor:
    """D for terms without G, float64 ``[out, in]``: (Σ w E H)(Σ w H + δμI)⁻¹."""
    doubles = [term.to(torch.float64) for term in terms]
    metric = sum((t.weight * t.H for t in doubles), torch.zeros_like(doubles[0].H))
    metric.diagonal().add_(damping * metric.diagonal().mean())
    right = sum((t.times(t.E) for t in doubles), torch.zeros_like(doubles[0].E))
    factor, info = torch.linalg.cholesky_ex(metric)
    if damping and int(info) == 0:
        return torch.cholesky_solve(right.T, factor).T
    return solve_up_to_rounding(metric, right.T).T


def conjugate_gradients(terms: Sequence[Term], damping: float) -> Iterator[tuple[Tensor, float]]:
    """D after every step for terms that all have a G, and the residual in the metric of the
    preconditioner, relative to that at D = 0. In the type of the terms; it begins at D = 0 and ends
    where the residual is zero.

    The preconditioner is the product of means, (Σ a G + √δ) ⊗ (Σ w H + √δ): it would solve the
    equation at once if all models had the same G and H. Models that were tuned from one base are
    near to that, so that a few steps are enough.
    """
    ridge = damping * sum(term.scale for term in terms)
    left, right = _preconditioner(terms, damping)
    residual = sum((term.times(term.E) for term in terms), torch.zeros_like(terms[0].E))
    D, direction = torch.zeros_like(residual), left @ residual @ right
    first = size = _dot(residual, direction)
    while size > 0:
        image = ridge * direction
        for term in terms:
            image += term.times(direction)
        step = size / _dot(direction, image)
        D = D + step * direction
        residual = residual - step * image
        better = left @ residual @ right
        before, size = size, _dot(residual, better)
        direction = better + (size / before) * direction
        yield D, (max(size, 0.0) / first) ** 0.5


def _dot(X: Tensor, Y: Tensor) -> float:
    return float((X * Y).sum(dtype=torch.float64))


def _preconditioner(terms: Sequence[Term], damping: float) -> tuple[Tensor, Tensor]:
    """Inverses of both sides' means, damped."""
    scales = [term.scale for term in terms]
    total = sum(scales)
    if not total:
        scales, total = [1.0] * len(terms), float(len(terms))
    outs = [term.G for term in terms if term.G is not None]
    left = _inverse(outs, scales, damping)
    right = _inverse([term.H for term in terms], scales, damping) / total
    dtype = terms[0].E.dtype
    return left.to(dtype), right.to(dtype)


def _inverse(sides: Sequence[Tensor], scales: Sequence[float], damping: float) -> Tensor:
    """(Σ s M / Σ s + √δ)⁻¹ in float64, each M scaled to a diagonal of mean 1."""
    mean = torch.zeros_like(sides[0], dtype=torch.float64)
    for side, scale in zip(sides, scales, strict=True):
        mean += side.double() * (scale / sum(scales) / _mean(side))
    mean.diagonal().add_(damping**0.5)
    return torch.cholesky_inverse(torch.linalg.cholesky(mean))


def _mean(H: Tensor) -> float:
    """Mean of the diagonal; 1 for a matrix that is all zero."""
    return float(H.diagonal().mean()) or 1.0
