"""Small dense linear algebra in float64: damped inverse factors, triangular packing, low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.errors import DecompositionError

NOISE = 1e-6
"""Values below this share of H are zero up to rounding: H is stored as float32, whose rounding unit
is 6e-8, and differences of such matrices are wrong by a few units."""


def damp(H: Tensor, damping: float) -> Tensor:
    """H / mean(diag H) + damping·I, float64 ``[n, n]``; the identity where H is all zero."""
    H = H.double()
    mean = H.diagonal().mean()
    if not torch.isfinite(mean):
        raise DecompositionError(
            "the Hessian is not finite", hint="the model overflows on the calibration text"
        )
    H = H / mean if mean > 0 else torch.eye(H.shape[0], dtype=H.dtype)
    return H + damping * torch.eye(H.shape[0], dtype=H.dtype)


def inverse_factor(H: Tensor) -> Tensor:
    """Upper U with H⁻¹ = UᵀU, for positive definite H ``[n, n]``.

    H = V Vᵀ with V upper comes from the Cholesky factor of H flipped in both directions; then
    U = V⁻¹. No inverse of H is formed.
    """
    V, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0:
        raise DecompositionError(
            "the Hessian is not positive definite", hint="raise compress.damping"
        )
    V = V.flip(0, 1)
    eye = torch.eye(H.shape[0], dtype=H.dtype)
    U: Tensor = torch.linalg.solve_triangular(V, eye, upper=True)
    return U


def inverse_factor_up_to_rounding(H: Tensor) -> Tensor:
    """`inverse_factor` of a matrix that is positive definite up to rounding: while Cholesky
    factorization fails, growing multiples of the identity are added."""
    mean = H.diagonal().mean()
    eye = torch.eye(H.shape[0], dtype=H.dtype)
    shift = NOISE
    while shift <= H.shape[0]:
        if int(torch.linalg.cholesky_ex(H.flip(0, 1)).info) == 0:
            break
        H, shift = H + shift * mean * eye, 10 * shift
    return inverse_factor(H)


def solve_up_to_rounding(gram: Tensor, B: Tensor) -> Tensor:
    """gram⁻¹ B for a positive semidefinite gram ``[r, r]``. Where gram is singular up to rounding,
    its pseudo-inverse is used: directions of eigenvalues near 0 are left out."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > NOISE * values[-1]
    if bool(kept.all()):
        solved: Tensor = torch.linalg.solve(gram, B)
    else:
        basis = vectors[:, kept]
        solved = basis @ ((basis.T @ B) / values[kept, None])
    return solved


def top_left_singular_vectors(A: Tensor, H: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors of A·H^½, float64 ``[m, rank]``, orthonormal.

    For A ``[m, n]`` they are the leading eigenvectors of A H Aᵀ; where m > n the n × n problem
    of CᵀAᵀAC with H = CCᵀ is smaller and gives the same vectors.
    """
    A, H = A.double(), H.double()
    m, n = A.shape
    if m <= n:
        left: Tensor = torch.linalg.eigh(A @ H @ A.T).eigenvectors[:, -rank:]
        return left.flip(1)
    values, vectors = torch.linalg.eigh(H)
    Y = A @ (vectors * values.clamp_min(0).sqrt())
    right = torch.linalg.eigh(Y.T @ Y).eigenvectors[:, -rank:].flip(1)
    basis: Tensor = torch.linalg.qr(Y @ right).Q
    return basis


def product_svd(L: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U ``[m, r]``, S ``[r]`` and Vᵀ ``[r, n]`` of L·R, from the factors L ``[m, k]`` and R
    ``[k, n]``; the product itself is never made. r is the least of m, n and k."""
    left, right = torch.linalg.qr(L), torch.linalg.qr(R.T)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return left.Q @ U, S, Vh @ right.Q.T


def least_rank(L: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product of the least rank, up to rounding: singular values below 1e-5 of
    the largest are left out. L and R themselves if their rank is the least already."""
    U, S, Vh = product_svd(L, R)
    rank = max(1, int((1e-5 * S[0] < S).sum()))
    if rank >= R.shape[0]:
        return L, R
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def pack_symmetric(H: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix ``[n, n]`` as float32 ``[n(n+1)/2]``."""
    return torch.cat([H[i, i:].float() for i in range(H.shape[0])])


def unpack_symmetric(packed: Tensor) -> Tensor:
    """Inverse of `pack_symmetric`."""
    n = int((2 * packed.numel() + 0.25) ** 0.5)
    H = packed.new_empty(n, n)
    at = 0
    for i in range(n):  # row by row: index tensors would be larger than H
        row = packed[at : at + n - i]
        H[i, i:] = row
        H[i:, i] = row
        at += n - i
    return H
