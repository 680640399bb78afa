"""The loops of the sweep that go column by column, compiled.

Only sums over columns or candidates inside a loop are vectorised. Everything else is computed as
written, so results do not depend on the number of threads. The loops release the interpreter lock.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]

_compiled = numba.njit(cache=True, nogil=True)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _bin(t: Any, last: Any, first: Any) -> Any:
    """Index of the level nearest to t in the table: levels are integers, so ⌊2t⌋ determines it (see
    `Levels.bins`). Unsigned, because a signed index makes every look-up handle negative ones."""
    at = np.floor(np.float32(2) * t) - first
    at = min(at, last) if at > np.float32(0) else np.float32(0)  # NaN becomes 0
    return np.uint32(np.int32(at))


@_compiled  # type: ignore[untyped-decorator]
def sweep(
    x: Float,
    U: Float,
    scale: Float,
    offset: Float,
    unit: NDArray[np.int64],
    levels: Float,
    bins: Codes,
    first: np.float32,
    U_out: Float,
    best: NDArray[np.int64],
    codes: Codes,
    errors: Float,
) -> None:
    """Round one block with error feedback under K grids, row by row, and keep the cheapest.

    x ``[rows, size]`` and U ``[size, size]`` upper are in the order of processing. Scale and offset
    are ``[rows, units, K]``; `unit` ``[size]`` is the unit of each column. With U_out ``[rows,
    rows]`` upper, the errors of a row are also fed back into the rows after it (x is overwritten).
    Without it (``[0, 0]``), rows are independent. Fills `best` ``[rows]``, `codes` and `errors` =
    (x_j − Q_j)/(U_jj·U_out,ii) ``[rows, size]``; the cost of a grid is Σ errors².
    """
    rows, size = x.shape
    K, last = scale.shape[2], np.float32(len(bins) - 1)
    table = levels[bins]
    left, e = np.empty((size, K), np.float32), np.empty((size, K), np.float32)
    for r in range(rows):
        cost = np.zeros(K, np.float32)
        for j in range(size):
            left[j, :] = x[r, j]
        for j in range(size):
            s, o, ej, lj = scale[r, unit[j]], offset[r, unit[j]], e[j], left[j]
            inverse_U = np.float32(1) / U[j, j]
            for k in range(K):
                inverse = np.float32(0) if s[k] == 0 else np.float32(1) / s[k]
                level = table[_bin((lj[k] - o[k]) * inverse, last, first)]
                ej[k] = (lj[k] - (s[k] * level + o[k])) * inverse_U
                cost[k] += ej[k] * ej[k]
            for i in range(j + 1, size):
                u, li = U[j, i], left[i]
                for k in range(K):
                    li[k] -= u * ej[k]
        chosen = np.argmin(cost)
        best[r] = chosen
        for j in range(size):
            s1, o1 = scale[r, unit[j], chosen], offset[r, unit[j], chosen]
            inverse = np.float32(0) if s1 == 0 else np.float32(1) / s1
            codes[r, j] = bins[_bin((left[j, chosen] - o1) * inverse, last, first)]
            errors[r, j] = e[j, chosen]
        if len(U_out):
            _pass_on(x, U, U_out, errors, r)


@_compiled  # type: ignore[untyped-decorator]
def _pass_on(x: Float, U: Float, U_out: Float, errors: Float, r: int) -> None:
    """Normalise the errors of row r, and subtract their effect from the rows after it."""
    rows, size = x.shape
    effect = np.zeros(size, np.float32)
    inverse = np.float32(1) / U_out[r, r]
    for j in range(size):
        errors[r, j] *= inverse
        for i in range(j, size):
            effect[i] += errors[r, j] * U[j, i]
    for i in range(r + 1, rows):
        u = U_out[r, i]
        for j in range(size):
            x[i, j] -= u * effect[j]


@_compiled  # type: ignore[untyped-decorator]
def descend(
    gradient: Float,
    H: Float,
    H_out: Float,
    scale: Float,
    offset: Float,
    levels: Float,
    bins: Codes,
    first: np.float32,
    codes: Codes,
    Q: Float,
    residual: Float,
) -> None:
    """Coordinate descent over the columns of one block, in place.

    gradient ``[rows, size]`` is H_out (W−Q) H for these elements. H ``[size, size]`` and H_out
    ``[rows, rows]`` (``[0, 0]`` where rows are independent) are the parts of these columns and
    rows. codes, Q and residual = W − Q are ``[rows, size]``.
    """
    rows, size = gradient.shape
    last = np.float32(len(bins) - 1)
    for r in range(rows):
        own = H_out[r, r] if len(H_out) else np.float32(1)
        for j in range(size):
            s, o = scale[r, j], offset[r, j]
            inverse = np.float32(0) if s == 0 else np.float32(1) / s
            target = Q[r, j] + gradient[r, j] / (H[j, j] * own)
            code = bins[_bin((target - o) * inverse, last, first)]
            if code == codes[r, j]:
                continue
            change = s * levels[code] + o - Q[r, j]
            if len(H_out):
                for i in range(r, rows):
                    u = H_out[r, i] * change
                    for k in range(size):
                        gradient[i, k] -= u * H[j, k]
            else:
                for k in range(size):
                    gradient[r, k] -= H[j, k] * change
            codes[r, j] = code
            Q[r, j] += change
            residual[r, j] -= change
