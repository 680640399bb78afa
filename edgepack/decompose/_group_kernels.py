"""The loops of `_kernels` for vector codebooks: columns are rounded in groups of 8 or 4.

The error of a group, times the inverse of its part of U, is fed back like that of a column. The
point is chosen in the metric of the diagonal M_ii = Σ_j (U_gg⁻¹)_ij². The rest of M would only
change the choice between points of nearly equal cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Numba's cache of these loops depends on this file alone: touch it after changing the other ones.
from edgepack.decompose._kernels import _compiled, _pass_on
from edgepack.formats._codebook_kernels import Book, Codes, Float, choose, new_scratch


@_compiled  # type: ignore[untyped-decorator]
def sweep(
    x: Float,
    U: Float,
    inverse: Float,
    weight: Float,
    scale: Float,
    unit: NDArray[np.int64],
    U_out: Float,
    book: Book,
    best: NDArray[np.int64],
    codes: Codes,
    errors: Float,
) -> None:
    """As `_kernels.sweep`, group by group.

    `inverse` ``[groups, group, group]`` holds the inverses of the groups' parts of U, `weight`
    ``[groups, group]`` the diagonals of M, `scale` is ``[rows, units, K]``, and `unit` ``[groups]``
    is the unit of each group. Fills
    `errors` = (x_g − Q_g)·U_gg⁻¹ / U_out,ii ``[rows, size]``.
    """
    rows, size = x.shape
    K, group = scale.shape[2], book.group
    left, e = np.empty(size, np.float32), np.empty(group, np.float32)
    tried_codes, tried_errors = np.empty(size, np.uint8), np.empty(size, np.float32)
    work = new_scratch(book)
    for r in range(rows):
        least = np.float32(np.inf)
        for k in range(K):
            cost = np.float32(0)
            left[:] = x[r]
            for g in range(len(unit)):
                a, b = g * group, (g + 1) * group
                s = scale[r, unit[g], k]
                choose(left[a:b], weight[g], s, book, work, tried_codes[a:b])
                for i in range(a, b):
                    left[i] -= s * book.levels[tried_codes[i]]
                e[:] = 0
                for i in range(group):
                    for j in range(i, group):
                        e[j] += left[a + i] * inverse[g, i, j]
                for j in range(group):
                    cost += e[j] * e[j]
                    tried_errors[a + j] = e[j]
                    u = U[a + j]
                    for i in range(b, size):
                        left[i] -= e[j] * u[i]
                if cost >= least:
                    break
            if cost < least:
                least, best[r] = cost, k
                codes[r], errors[r] = tried_codes, tried_errors
        if len(U_out):
            _pass_on(x, U, U_out, errors, r)


@_compiled  # type: ignore[untyped-decorator]
def descend(
    gradient: Float,
    H: Float,
    H_out: Float,
    inverse: Float,
    scale: Float,
    book: Book,
    codes: Codes,
    Q: Float,
    residual: Float,
) -> None:
    """As `_kernels.descend`, group by group; `inverse` ``[groups, group, group]`` holds the
    inverses of the groups' parts of H. Codes change only where the cost, computed exactly, falls.
    """
    rows, size = gradient.shape
    group = book.group
    target, change = np.empty(group, np.float32), np.empty(group, np.float32)
    work = new_scratch(book)
    weight, tried = np.empty(group, np.float32), np.empty(group, np.uint8)
    for r in range(rows):
        own = H_out[r, r] if len(H_out) else np.float32(1)
        for g in range(len(inverse)):
            a, s = g * group, scale[r, g]
            for i in range(group):
                weight[i] = H[a + i, a + i]
                target[i] = Q[r, a + i]
                for j in range(group):
                    target[i] += inverse[g, i, j] * gradient[r, a + j] / own
            choose(target, weight, s, book, work, tried)
            delta = np.float32(0)
            for i in range(group):
                change[i] = s * book.levels[tried[i]] - Q[r, a + i]
                delta -= 2 * change[i] * gradient[r, a + i]
            for i in range(group):
                for j in range(group):
                    delta += own * change[i] * H[a + i, a + j] * change[j]
            if not delta < 0:
                continue
            for j in range(group):
                if len(H_out):
                    for i in range(r, rows):
                        u = H_out[r, i] * change[j]
                        for k in range(size):
                            gradient[i, k] -= u * H[a + j, k]
                else:
                    for k in range(size):
                        gradient[r, k] -= H[a + j, k] * change[j]
                codes[r, a + j] = tried[j]
                Q[r, a + j] += change[j]
                residual[r, a + j] -= change[j]
