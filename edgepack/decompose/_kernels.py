"""The two loops over columns that no tensor operation covers, compiled; rows run in parallel.

Plain float32 without fast-math: results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

numba.config.THREADING_LAYER = "workqueue"  # the one that survives a fork

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _nearest(x: Any, scale: Any, offset: Any, bins: Any, first: Any) -> Any:
    """The code nearest to x: levels lie on integers, so ⌊2t⌋ decides (see `Levels.bins`)."""
    inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
    half_steps = np.floor(np.float32(2) * (x - offset) * inverse)
    at = min(max(half_steps - np.float32(first), np.float32(0)), np.float32(len(bins) - 1))
    return bins[int(at)]


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def sweep(
    x: Float,
    U: Float,
    scale: Float,
    offset: Float,
    levels: Float,
    bins: Codes,
    first: int,
    best: NDArray[np.int64],
    codes: Codes,
    errors: Float,
) -> None:
    """Round one block with error feedback under K grids, row by row, and keep the cheapest.

    x ``[rows, size]``, U ``[size, size]`` upper, scale and offset ``[rows, K, size]``, all in the
    order of processing. Fills `best` ``[rows]``, `codes` and `errors` = (x_j − Q_j)/U_jj
    ``[rows, size]``; the cost of a grid is Σ errors².
    """
    rows, size = x.shape
    for r in numba.prange(rows):
        least = np.float32(np.inf)
        left, e = np.empty(size, np.float32), np.empty(size, np.float32)
        chosen = np.empty(size, np.uint8)
        for k in range(scale.shape[1]):
            left[:] = x[r]
            cost = np.float32(0)
            for j in range(size):
                s, o = scale[r, k, j], offset[r, k, j]
                chosen[j] = _nearest(left[j], s, o, bins, first)
                e[j] = (left[j] - (s * levels[chosen[j]] + o)) / U[j, j]
                cost += e[j] * e[j]
                if cost >= least:
                    break
                for i in range(j + 1, size):
                    left[i] -= U[j, i] * e[j]
            if cost < least:
                least = cost
                best[r], codes[r], errors[r] = k, chosen, e


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def descend(
    gradient: Float,
    H: Float,
    scale: Float,
    offset: Float,
    levels: Float,
    bins: Codes,
    first: int,
    codes: Codes,
    Q: Float,
    residual: Float,
) -> None:
    """Coordinate descent over the columns of one block, in place.

    gradient ``[rows, size]`` is ((W−Q)H) in these columns, H ``[size, size]`` their own; codes, Q
    and residual = W − Q ``[rows, size]``.
    """
    rows, size = gradient.shape
    for r in numba.prange(rows):
        for j in range(size):
            s, o = scale[r, j], offset[r, j]
            code = _nearest(Q[r, j] + gradient[r, j] / H[j, j], s, o, bins, first)
            if code == codes[r, j]:
                continue
            change = s * levels[code] + o - Q[r, j]
            for i in range(size):
                gradient[r, i] -= H[j, i] * change
            codes[r, j] = code
            Q[r, j] += change
            residual[r, j] -= change
