"""The loops of `_search`, compiled: one block after another.

Probes, or the scales that are refined, lie side by side in the processor's lanes: a loop over the
columns of the block is outside, so that no sum goes across lanes. Functions that must round as
written (`_half`) say that they forbid reordering: numba compiles a function that says nothing as
the first one that calls it.
"""

from __future__ import annotations

from functools import partial
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
NEARLY_EXACT = np.float32(1e-6)
"""Share of Σ w·x² below which the closed form, which is a difference, says nothing of an error:
the block may lie on a grid, and then exactly that grid should be found."""
LANES = 16
"""Scales that are refined side by side: float32 numbers of an AVX-512 register."""
ZERO, HALF, ONE, TWO = (np.float32(v) for v in (0, 0.5, 1, 2))
INFINITE = np.float32(np.inf)

_options = partial(numba.njit, cache=True, error_model="numpy")  # no tests for divisions by 0
_strict = _options(fastmath=False)
_fast = _options(fastmath={"reassoc", "contract", "nsz"})
_lanes = _options(fastmath={"reassoc", "contract", "nsz", "nnan"})  # for loops without look-ups
_compiled = _options(fastmath=False, nogil=True)


@_strict  # type: ignore[untyped-decorator]
def _half(d: Any) -> Any:
    """d rounded to fp16 (Veltkamp's split; overflow becomes the largest fp16)."""
    d = min(max(d, -FP16_MAX), FP16_MAX)
    small = np.float32(d + LAST_BIT) - LAST_BIT
    wide = np.float32(SPLIT * d)
    split = wide - np.float32(wide - d)
    return small if abs(d) < FP16_NORMAL else split  # both, because lanes cannot branch


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


@_strict  # type: ignore[untyped-decorator]
def _is_uniform(table: Any, first: Any) -> Any:
    """Whether the levels of the half steps from `first` are all whole numbers of a range."""
    for k in range(len(table)):  # noqa: SIM110  numba has no generators
        if table[k] != np.floor(HALF * (first + np.float32(k + 1))):
            return False
    return True


@_lanes  # type: ignore[untyped-decorator]
def _fit_uniform(x: Any, w: Any, inverse: Any, low: Any, high: Any, lx: Any, ll: Any) -> None:
    """`_fit` for levels that are all whole numbers from `low` to `high`."""
    lx[:], ll[:] = ZERO, ZERO
    for j in range(len(x)):
        xj, wj = x[j], w[j]  # what is read inside the loop might be what is written there
        wx = wj * xj
        for k in range(len(inverse)):
            level = min(max(np.floor(xj * inverse[k] + HALF), low), high)
            lx[k] += wx * level
            ll[k] += wj * level * level


@_lanes  # type: ignore[untyped-decorator]
def _miss_uniform(x: Any, w: Any, inverse: Any, d: Any, low: Any, high: Any, error: Any) -> None:
    """`_miss` for levels that are all whole numbers from `low` to `high`."""
    error[:] = ZERO
    for j in range(len(x)):
        xj, wj = x[j], w[j]
        for k in range(len(d)):
            miss = xj - d[k] * min(max(np.floor(xj * inverse[k] + HALF), low), high)
            error[k] += wj * miss * miss


@_fast  # type: ignore[untyped-decorator]
def _fit(x: Any, w: Any, inverse: Any, table: Any, first: Any, lx: Any, ll: Any) -> None:
    """(Σ w·x·level, Σ w·level²), the levels being those nearest to x·inverse, for every `inverse`
    ``[n]``: their ratio is the d of least squares."""
    last = np.float32(len(table) - 1)
    for k in range(len(inverse)):
        fitted, size = ZERO, ZERO
        for j in range(len(x)):
            level = table[_place(np.floor(TWO * x[j] * inverse[k]) - first, last)]
            fitted += w[j] * x[j] * level
            size += w[j] * level * level
        lx[k], ll[k] = fitted, size


@_fast  # type: ignore[untyped-decorator]
def _miss(x: Any, w: Any, inverse: Any, d: Any, table: Any, first: Any, errors: Any) -> None:
    """Σ w·(x − d·level)², the levels being those nearest to x·inverse, for every d ``[n]``."""
    last = np.float32(len(table) - 1)
    for k in range(len(d)):
        error = ZERO
        for j in range(len(x)):
            miss = x[j] - d[k] * table[_place(np.floor(TWO * x[j] * inverse[k]) - first, last)]
            error += w[j] * miss * miss
        errors[k] = error


@_strict  # type: ignore[untyped-decorator]
def _scales(lx: Any, ll: Any, as_half: Any, d: Any, score: Any) -> None:
    """d of least squares, and its error less Σ w·x², d rounded: d²·ll − 2·d·lx. May overwrite."""
    for k in range(len(d)):
        fitted = _ratio(lx[k], ll[k])
        fitted = _half(fitted) if as_half else fitted
        d[k], score[k] = fitted, fitted * (fitted * ll[k] - TWO * lx[k])


@_strict  # type: ignore[untyped-decorator]
def _pick(score: Any, d: Any, groups: Any, leaders: Any, low: Any, picked: Any, count: Any) -> None:
    """The d of the best probe of each of the `count` best groups; member m of group g is at
    m·groups + g. `leaders` ``[≥ groups]`` and `low` ``[LANES]`` are room to work in."""
    leaders[:] = INFINITE
    for start in range(0, len(score), groups):
        for g in range(groups):
            leaders[g] = min(leaders[g], score[start + g])
    for k in range(count):
        low[:] = INFINITE
        for g in range(0, len(leaders), LANES):
            for i in range(LANES):
                low[i] = min(low[i], leaders[g + i])
        least, at = INFINITE, 0
        for i in range(LANES):
            least = min(least, low[i])
        while at < groups - 1 and leaders[at] != least:
            at += 1
        leaders[at] = INFINITE
        while at < len(score) - groups and score[at] != least:
            at += groups
        picked[k] = d[at]


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
    keep, groups = errors.shape[1], len(probes)
    probe = probes.T.copy().ravel()
    uniform, lowest, highest = _is_uniform(table, first), table[0], table[-1]
    lanes = -(-keep // LANES) * LANES
    leaders, low = np.empty(-(-groups // LANES) * LANES, np.float32), np.empty(LANES, np.float32)
    inverse, tried = np.empty(len(probe), np.float32), np.empty(len(probe), np.float32)
    lx, ll = np.empty(len(probe), np.float32), np.empty(len(probe), np.float32)
    inverse_d, d = np.zeros(lanes, np.float32), np.zeros(lanes, np.float32)
    own_lx, own_ll = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for r in range(len(x)):
        xr, w = x[r], weights[r if len(weights) > 1 else 0]
        peak, total = ZERO, ZERO
        for j in range(len(xr)):
            total += w[j] * xr[j] * xr[j]
            if w[j] > 0 and abs(xr[j]) > abs(peak):
                peak = xr[j]
        unit = _reciprocal(peak)
        for k in range(len(probe)):
            inverse[k] = unit * probe[k]
        if uniform:
            _fit_uniform(xr, w, inverse, lowest, highest, lx, ll)
        else:
            _fit(xr, w, inverse, table, first, lx, ll)
        _scales(lx, ll, as_half, tried, lx)
        if lx.min() + total < NEARLY_EXACT * total:
            _miss(xr, w, inverse, tried, table, first, lx)
        _pick(lx, tried, groups, leaders, low, d, min(keep, groups))
        for again in range(REFITS):
            for k in range(lanes):
                inverse_d[k] = _reciprocal(d[k])
            if uniform:
                _fit_uniform(xr, w, inverse_d, lowest, highest, own_lx, own_ll)
            else:
                _fit(xr, w, inverse_d[:keep], table, first, own_lx, own_ll)
            _scales(own_lx, own_ll, as_half and again == REFITS - 1, d, own_lx)
        for k in range(lanes):
            inverse_d[k] = _reciprocal(d[k])
        if uniform:
            _miss_uniform(xr, w, inverse_d, d, lowest, highest, own_lx)
        else:
            _miss(xr, w, inverse_d[:keep], d[:keep], table, first, own_lx)
        for k in range(min(keep, groups)):
            at = _sorted_into(errors[r], k, own_lx[k])
            _insert(scales[r], at, d[k])


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
