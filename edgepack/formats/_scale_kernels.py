"""The loops of `_search`, compiled: one block after another, blocks in parallel.

Sums are over one block. The compiler may reorder them to vectorise, but their order does not depend
on the number of threads. Functions that must round as written (`_half`) forbid reordering.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

TINY = np.float32(1e-30)
REFITS = 2
FP16_MAX = np.float32(65504.0)
FP16_NORMAL = np.float32(2.0**-14)
SPLIT = np.float32(2.0**13 + 1)
LAST_BIT = np.float32(0.75)  # its unit in the last place is fp16's smallest step, 2⁻²⁴
ROUNDING_COUNTS = np.float32(64.0)
"""Extra weight of the rounding of d when probes are scored: the closed form is exact to 1e-7 only,
and among several grids through all x of a block, the one whose d is an fp16 number should win."""
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)

_fast = numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
_strict = numba.njit(cache=True)
_compiled = numba.njit(cache=True, nogil=True)


@_strict  # type: ignore[untyped-decorator]
def _half(d: Any) -> Any:
    """d rounded to fp16 (Veltkamp's split; overflow becomes the largest fp16)."""
    d = min(max(d, -FP16_MAX), FP16_MAX)
    if abs(d) < FP16_NORMAL:
        return np.float32(d + LAST_BIT) - LAST_BIT
    wide = np.float32(SPLIT * d)
    return wide - np.float32(wide - d)


@_strict  # type: ignore[untyped-decorator]
def _reciprocal(scale: Any) -> Any:
    """1/scale, or 0 where that overflows or the scale is 0: every x takes the level nearest 0."""
    return ZERO if abs(scale) < TINY else ONE / scale


@_strict  # type: ignore[untyped-decorator]
def _ratio(a: Any, b: Any) -> Any:
    """a/b for b ≥ 0, and 0 where b vanishes."""
    return a / b if b > TINY else ZERO


@_strict  # type: ignore[untyped-decorator]
def _place(at: Any, last: Any) -> Any:
    """`at` as an index from 0 to `last`; NaN becomes 0, so that no look-up leaves its table."""
    if not at > ZERO:
        return np.uint32(0)
    return np.uint32(np.int32(min(at, last)))


@_strict  # type: ignore[untyped-decorator]
def _step(t: Any, top: Any) -> Any:
    """The whole number from 0 to `top` that is nearest to t; NaN becomes 0."""
    q = np.rint(t)
    if not q > ZERO:
        return ZERO
    return min(q, top)


@_fast  # type: ignore[untyped-decorator]
def _fit_scale(x: Any, w: Any, inverse: Any, table: Any, first: Any) -> Any:
    """Least-squares d for x ≈ d·level, the levels being those nearest to x·inverse."""
    last = np.float32(len(table) - 1)
    lx, ll = ZERO, ZERO
    for j in range(len(x)):
        level = table[_place(np.floor(TWO * x[j] * inverse) - first, last)]
        lx += w[j] * x[j] * level
        ll += w[j] * level * level
    return _ratio(lx, ll)


@_fast  # type: ignore[untyped-decorator]
def _miss(x: Any, w: Any, inverse: Any, d: Any, table: Any, first: Any) -> Any:
    """Σ w·(x − d·level)², the levels being those nearest to x·inverse."""
    last = np.float32(len(table) - 1)
    error = ZERO
    for j in range(len(x)):
        miss = x[j] - d * table[_place(np.floor(TWO * x[j] * inverse) - first, last)]
        error += w[j] * miss * miss
    return error


@_strict  # type: ignore[untyped-decorator]
def _sorted_into(errors: Any, count: Any, error: Any) -> Any:
    """Insert `error` into a sorted array of which `count` entries are used. Returns its index, or
    the array's length where it is not among the best."""
    at = count
    while at > 0 and errors[at - 1] > error:
        at -= 1
    for i in range(min(count, len(errors) - 1), at, -1):
        errors[i] = errors[i - 1]
    if at < len(errors):
        errors[at] = error
    return at


@_strict  # type: ignore[untyped-decorator]
def _insert(values: Any, at: Any, value: Any) -> None:
    """Insert `value` at an index; the later values move up, the last one is dropped."""
    for i in range(len(values) - 1, at, -1):
        values[i] = values[i - 1]
    if at < len(values):
        values[at] = value


@_compiled  # type: ignore[untyped-decorator]
def one_scale(
    x: Float,
    weights: Float,
    probes: Float,
    table: Float,
    first: np.float32,
    as_half: bool,
    errors: Float,
    scales: Float,
) -> None:
    """See `_search.one_scale`; x ``[n, columns]``, weights the same or ``[1, columns]``, `table`
    the level of every half step from `first`. Fills errors and scales ``[n, keep]``."""
    keep = errors.shape[1]
    for r in range(len(x)):
        xr, w = x[r], weights[r if len(weights) > 1 else 0]
        peak = ZERO
        for j in range(len(xr)):
            if w[j] > 0 and abs(xr[j]) > abs(peak):
                peak = xr[j]
        inverse = _reciprocal(peak)
        leaders, starts = np.empty(keep, np.float32), np.empty(keep, np.float32)
        used = 0
        for g in range(probes.shape[0]):
            least, start = np.float32(np.inf), ZERO
            for m in range(probes.shape[1]):
                probe = inverse * probes[g, m]
                d = _fit_scale(xr, w, probe, table, first)
                d = _half(d) if as_half else d
                error = _miss(xr, w, probe, d, table, first)
                if error < least:
                    least, start = error, d
            at = _sorted_into(leaders, used, least)
            _insert(starts, at, start)
            used = min(used + 1, keep)
        for k in range(used):
            d = starts[k]
            for _ in range(REFITS):
                d = _fit_scale(xr, w, _reciprocal(d), table, first)
            d = _half(d) if as_half else d
            at = _sorted_into(errors[r], k, _miss(xr, w, _reciprocal(d), d, table, first))
            _insert(scales[r], at, d)


@_fast  # type: ignore[untyped-decorator]
def _sums(x: Any, w: Any, origin: Any, inverse: Any, shift: Any, mean: Any, top: Any) -> Any:
    """(Σ w·q·(x − mean), Σ w·q, Σ w·q²) for q = (x − origin)·inverse − shift, rounded."""
    qx, q1, qq = ZERO, ZERO, ZERO
    for j in range(len(x)):
        q = min(max(np.rint((x[j] - origin) * inverse - shift), ZERO), top)
        wq = w[j] * q
        qx += wq * (x[j] - mean)
        q1 += wq
        qq += wq * q
    return qx, q1, qq


@_fast  # type: ignore[untyped-decorator]
def _miss_min(x: Any, w: Any, d: Any, m: Any, top: Any) -> Any:
    """Σ w·(x − d·q − m)² with the nearest codes q."""
    inverse, error = _reciprocal(d), ZERO
    for j in range(len(x)):
        miss = x[j] - m - d * min(max(np.rint((x[j] - m) * inverse), ZERO), top)
        error += w[j] * miss * miss
    return error


@_strict  # type: ignore[untyped-decorator]
def _refit(x: Any, w: Any, d: Any, m: Any, mean: Any, total: Any, top: Any, negative: Any) -> Any:
    """Least squares for (d, m) with the codes fixed."""
    qx, q1, qq = _sums(x, w, m, _reciprocal(d), ZERO, mean, top)
    mean_q = _ratio(q1, total)
    fitted = _ratio(qx, qq - q1 * mean_q)
    offset = mean - fitted * mean_q
    if negative and offset > 0:
        return _ratio(qx + mean * q1, qq), ZERO
    return fitted, offset


@_strict  # type: ignore[untyped-decorator]
def _settled(x: Any, w: Any, d: Any, m: Any, total: Any, top: Any) -> Any:
    """(d, m) as fp16, m re-fitted to the rounded d, at the code shift where m rounds best.

    Codes that leave part of 0 … top unused can move up or down by s while m moves by −s·d: the
    values stay the same, but m rounds differently. This finds grids that never use their lowest
    code. It is computed in float64, because float32 noise would decide between good shifts.
    """
    d = _half(d)
    inverse, low, high, sum_ = _reciprocal(d), top, ZERO, 0.0
    for j in range(len(x)):
        q = _step((x[j] - m) * inverse, top)
        low, high = min(low, q), max(high, q)
        sum_ += np.float64(w[j]) * (np.float64(x[j]) - np.float64(d) * np.float64(q))
    centre = sum_ / total if total > TINY else 0.0
    least, best = np.inf, ZERO
    for shift in range(-int(low), int(top - high) + 1):
        moved = centre - shift * np.float64(d)
        rounded = _half(np.float32(moved))
        if abs(np.float64(rounded) - moved) < least:
            least, best = abs(np.float64(rounded) - moved), rounded
    return d, best


@_compiled  # type: ignore[untyped-decorator]
def scale_min(
    x: Float,
    weights: Float,
    probes: Float,
    top: np.float32,
    as_half: bool,
    negative: bool,
    errors: Float,
    scales: Float,
    offsets: Float,
) -> None:
    """See `_search.scale_min`; fills errors, scales and offsets ``[n, keep]``."""
    keep = errors.shape[1]
    for r in range(len(x)):
        xr, w = x[r], weights[r if len(weights) > 1 else 0]
        low, high = np.float32(np.inf), np.float32(-np.inf)
        total, mean = ZERO, ZERO
        for j in range(len(xr)):
            total += w[j]
            mean += w[j] * xr[j]
            if w[j] > 0:
                low, high = min(low, xr[j]), max(high, xr[j])
        mean = _ratio(mean, total)
        if negative:
            low = min(low, ZERO)
        inverse = _reciprocal(high - low)
        leaders = np.empty(keep, np.float32)
        start_d, start_m = np.empty(keep, np.float32), np.empty(keep, np.float32)
        used = 0
        for g in range(probes.shape[0]):
            least, one_d, one_m = np.float32(np.inf), ZERO, ZERO
            for i in range(probes.shape[1]):
                steps, part = probes[g, i, 0], probes[g, i, 1]
                qx, q1, qq = _sums(xr, w, low, inverse * steps, part * (steps - top), mean, top)
                spread = qq - q1 * _ratio(q1, total)
                d = _ratio(qx, spread)
                lost = d - _half(d) if as_half else ZERO
                score = ROUNDING_COUNTS * lost * lost * spread - d * qx
                if score < least:
                    least, one_d, one_m = score, d, mean - d * _ratio(q1, total)
            at = _sorted_into(leaders, used, least)
            _insert(start_d, at, one_d)
            _insert(start_m, at, one_m)
            used = min(used + 1, keep)
        for k in range(used):
            d, m = start_d[k], start_m[k]
            for _ in range(REFITS):
                d, m = _refit(xr, w, d, m, mean, total, top, negative)
            if as_half:
                d, m = _settled(xr, w, d, m, total, top)
            at = _sorted_into(errors[r], k, _miss_min(xr, w, d, m, top))
            _insert(scales[r], at, d)
            _insert(offsets[r], at, m)
