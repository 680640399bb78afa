"""Dense linear algebra in float64: damped inverse factors, triangular packing, low rank.

H of a wide weight takes gigabytes, so there is never more than one float64 copy of it: products
convert a slab at a time, and factors are made in place, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgepack.errors import DecompositionError

NOISE = 1e-6
"""Values below this share of H are zero up to rounding: H is stored as float32, whose rounding unit
is 6e-8, and differences of such matrices are wrong by a few units."""
SLAB = 512
"""Rows or columns of a matrix that are copied, or factored, at once: LAPACK factors a block,
products of matrices do the rest."""


def slabs(n: int, size: int = SLAB) -> Iterator[slice]:
    """0 … n in slices of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def matmul64(A: Tensor, H: Tensor) -> Tensor:
    """A·H in float64, for A in float64; of an H in float32 only a slab of columns is converted at
    a time."""
    if H.dtype == A.dtype:
        return A @ H
    out = A.new_empty(len(A), H.shape[1])
    for columns in slabs(H.shape[1]):
        out[:, columns] = A @ H[:, columns].double()
    return out


def damped_diagonal(H: Tensor, damping: float) -> Tensor:
    """The diagonal of `damp` ``[n]``, float64."""
    mean = _mean_diagonal(H)
    diagonal = H.diagonal().double()
    return (diagonal / mean if mean > 0 else torch.ones_like(diagonal)) + damping


def damp(
    H: Tensor, damping: float, order: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """H / mean(diag H) + damping·I ``[n, n]``, computed in float64; the identity in the place of an
    H that is all zero. Row and column i are those of ``order[i]``."""
    mean = _mean_diagonal(H)
    out = torch.empty(H.shape, dtype=dtype, device=H.device)
    for rows in slabs(len(H)):
        part = (H[rows] if order is None else H[order[rows]][:, order]).to(torch.float64, copy=True)
        part = part.div_(mean) if mean > 0 else part.zero_()
        part.diagonal(rows.start).add_(damping if mean > 0 else 1 + damping)
        out[rows] = part
    return out


def _mean_diagonal(H: Tensor) -> Tensor:
    mean = H.diagonal().double().mean()
    if not torch.isfinite(mean):
        raise DecompositionError(
            "the Hessian is not finite", hint="the model overflows on the calibration text"
        )
    return mean


def upper_factor(H: Tensor) -> Tensor:
    """Upper V with H = V Vᵀ, for positive definite H ``[n, n]`` in float64. H is overwritten."""
    if not _factor_upper(H):
        raise _not_positive()
    for rows in slabs(len(H)):
        H[rows, : rows.start] = 0
    return H


def inverse_factor(H: Tensor) -> Tensor:
    """Upper U with H⁻¹ = UᵀU, for positive definite H ``[n, n]``. No inverse of H is formed: U is
    the inverse of the V of `upper_factor`."""
    return _invert_upper(upper_factor(H.clone()))


def inverse_factor_up_to_rounding(H: Tensor) -> Tensor:
    """`inverse_factor` of a matrix that is positive definite up to rounding: while Cholesky
    factorization fails, growing multiples of the identity are added. H is overwritten."""
    blocks = [(rows, H[rows, rows].clone()) for rows in slabs(len(H))]
    mean, shift = H.diagonal().mean(), NOISE
    while not _factor_upper(H):
        if shift > H.shape[0]:
            raise _not_positive()
        mirror(H, from_lower=True)
        for rows, block in blocks:
            block.diagonal().add_(shift * mean)
            H[rows, rows] = block
        shift *= 10
    for rows in slabs(len(H)):
        H[rows, : rows.start] = 0
    return _invert_upper(H)


def _factor_upper(H: Tensor) -> bool:
    """Put V with H = V Vᵀ into the upper triangle of H, block by block from the last to the first;
    False if H is not positive definite. What is below the blocks on the diagonal stays, so that H
    can be had again from that and those blocks."""
    for here in reversed(list(slabs(len(H)))):
        V, info = torch.linalg.cholesky_ex(H[here, here].flip(0, 1))
        if int(info) != 0:
            return False
        V = V.flip(0, 1)
        before = H[: here.start, here]
        before.copy_(torch.linalg.solve_triangular(V.T, before, upper=False, left=False))
        for columns in slabs(here.start):
            H[: columns.stop, columns].addmm_(before[: columns.stop], before[columns].T, alpha=-1)
        H[here, here] = V
    return True


def _invert_upper(V: Tensor) -> Tensor:
    """V⁻¹ of an upper V, in its place."""
    blocks = list(slabs(len(V)))
    for j, here in enumerate(blocks):
        eye = torch.eye(here.stop - here.start, dtype=V.dtype, device=V.device)
        own = torch.linalg.solve_triangular(V[here, here], eye, upper=True)
        above = V[: here.start, here] @ own
        for rows in blocks[:j]:
            V[rows, here] = -(V[rows, rows.start : here.start] @ above[rows.start :])
        V[here, here] = own
    return V


def _not_positive() -> DecompositionError:
    return DecompositionError("the Hessian is not positive definite", hint="raise compress.damping")


def mirror(H: Tensor, *, from_lower: bool = False) -> Tensor:
    """Make a square matrix symmetric, in place: the upper triangle is copied to the lower one, or
    the lower one to the upper."""
    source = H.T if from_lower else H
    for rows in slabs(len(H)):
        block = source[rows, rows].triu()
        source[rows, rows] = block + block.triu(1).T
        source[rows.stop :, rows] = source[rows, rows.stop :].T
    return H


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
    of CᵀAᵀAC with H = CCᵀ is smaller and gives the same vectors. Of a large matrix they come from
    a Krylov space.
    """
    A = A.double()
    m, n = A.shape
    if min(m, n) > LARGE and KRYLOV * (rank + MORE) < min(m, n):
        return _krylov(A, H, rank)
    if m <= n:
        left: Tensor = torch.linalg.eigh(matmul64(A, H) @ A.T).eigenvectors[:, -rank:]
        return left.flip(1)
    values, vectors = torch.linalg.eigh(H.double())
    Y = A @ (vectors * values.clamp_min(0).sqrt())
    right = torch.linalg.eigh(Y.T @ Y).eigenvectors[:, -rank:].flip(1)
    basis: Tensor = torch.linalg.qr(Y @ right).Q
    return basis


LARGE = 1536
"""Smaller side from which leading singular vectors are looked for in a Krylov space."""
KRYLOV, MORE = 6, 16
"""Blocks of the Krylov space, and vectors that a block has beyond the rank."""


def _krylov(A: Tensor, H: Tensor, rank: int) -> Tensor:
    """The best `rank` vectors for A H Aᵀ =: M in the span of X, M X, M² X …, X random (block
    Lanczos with full orthogonalization; Musco & Musco, arXiv 1504.05477, algorithm 2). M is never
    formed, and no square matrix is decomposed."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(len(A), rank + MORE, dtype=A.dtype, generator=generator)
    basis, images = A.new_empty(len(A), 0), A.new_empty(len(A), 0)
    for _ in range(KRYLOV):
        for _ in range(2):  # once leaves what rounding left
            X = torch.linalg.qr(X - basis @ (basis.T @ X)).Q
        basis, X = torch.cat([basis, X], 1), A @ matmul64(X.T @ A, H).T
        images = torch.cat([images, X], 1)
    inside = basis.T @ images
    vectors: Tensor = torch.linalg.eigh((inside + inside.T) / 2).eigenvectors[:, -rank:]
    return basis @ vectors.flip(1)


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
        H[i, i:] = packed[at : at + n - i]
        at += n - i
    return mirror(H)
