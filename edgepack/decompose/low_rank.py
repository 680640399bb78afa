"""The L·R step of CALDERA: the best rank-r correction in the metric of H, in closed form.

min over L, R of ‖(A − L·R) H^½‖² (CALDERA, arXiv 2405.18886, Lemma 4.2) has L = the leading left
singular vectors of A·H^½ and R = LᵀA: no inverse of H, so a singular H is harmless. L is
orthonormal and R carries the spectrum, so each row of R (a row of lora_A) gets its own scales.

With an output side, H_out = C Cᵀ, the same holds for CᵀA, as tr(H_out E H Eᵀ) = ‖(CᵀE) H^½‖²; L is
then C⁻ᵀ times the singular vectors, orthonormal in H_out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack import formats
from edgepack.core.linalg import (
    NOISE,
    damp,
    matmul64,
    mirror,
    slabs,
    solve_up_to_rounding,
    top_left_singular_vectors,
    upper_factor,
)
from edgepack.core.weights import QuantizedTensor
from edgepack.decompose.ldlq import OUT_DAMPING, ldlq, metric
from edgepack.formats._affine import Affine

_DAMPING = 1e-3  # small, because the factors' metrics only steer rounding at 4 to 16 bits


def low_rank(
    A: Tensor, H: Tensor, rank: int, factors: str, H_out: Tensor | None = None
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """L ``[out, rank]`` and R ``[rank, in]``, rounded, with L·R ≈ A ``[out, in]``.

    R is rounded first, in the metric H (the error of R passes through an orthonormal L). Then L is
    solved for the rounded R, L = A H Rᵀ (R H Rᵀ)⁻¹ for any H_out, and rounded in the metric of
    R H Rᵀ and H_out.
    """
    R = _round(exact_low_rank(A, H, rank, H_out)[1], H, factors)
    R_shipped = R.dequantize().double()
    RH = matmul64(R_shipped, H)
    gram = _gram(RH, R_shipped)
    L = solve_up_to_rounding(gram, RH @ A.double().T).T
    return _round(L, gram, factors, H_out), R


def exact_low_rank(
    A: Tensor, H: Tensor, rank: int, H_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """L ``[out, rank]`` and R ``[rank, in]`` in float64, not rounded. The leading columns of L and
    rows of R are the best pair of any smaller rank."""
    A = A.double()
    if H_out is None:
        L = top_left_singular_vectors(A, H, rank)
        return L, L.T @ A
    if H_out.dim() == 1:
        c = (H_out.double() + OUT_DAMPING).sqrt()[:, None]
        vectors = top_left_singular_vectors(c * A, H, rank)
        return vectors / c, vectors.T @ (c * A)
    C = upper_factor(damp(H_out, OUT_DAMPING))
    A = C.T @ A
    vectors = top_left_singular_vectors(A, H, rank)
    return torch.linalg.solve_triangular(C.T, vectors, upper=False), vectors.T @ A


def _gram(RH: Tensor, R: Tensor) -> Tensor:
    """R H Rᵀ, made invertible where it is zero (nothing to correct)."""
    gram = RH @ R.T
    gram = (gram + gram.T) / 2
    jitter = 1e-9 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    return gram + jitter * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)


def _round(factor: Tensor, H: Tensor, factors: str, H_out: Tensor | None = None) -> QuantizedTensor:
    """A factor ``[rows, columns]`` on the grid of `factors`, or f16 where that does not fit."""
    fmt = formats.get(formats.factor_format(factors, factor.shape[1]))
    if not isinstance(fmt, Affine):
        return fmt.quantize_anywhere(factor.float())
    return ldlq(factor.float(), metric(H, fmt.block_size, _DAMPING, H_out, fmt.group), fmt)


def downdate(H: Tensor, R: Tensor) -> Tensor:
    """H − H Rᵀ (R H Rᵀ)⁻¹ R H: the metric of Q's error if L is fitted anew for this R.

    The closed form of CALDERA's Hessian update (its code forms it through a Cholesky factor and
    singular vectors). ``[in, in]`` of H's type, positive semidefinite up to rounding. A column is
    zero where R explains all of it but rounding noise. For a text with fewer directions than R has
    rows, that is all of H.
    """
    R = R.double()
    RH = matmul64(R, H)
    explained = solve_up_to_rounding(_gram(RH, R), RH)
    down = torch.empty_like(H)
    for rows in slabs(len(H)):
        down[rows] = H[rows].double() - RH[:, rows].T @ explained
    mirror(down)
    left = (down.diagonal() > NOISE * H.diagonal()).to(H.dtype)
    if float(down.diagonal() @ left) <= NOISE * float(H.trace()):
        return down.zero_()
    return down.mul_(left[:, None]).mul_(left)
