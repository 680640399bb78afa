"""The loops of `_exact` for types with one scale a block, or a scale and an offset, compiled.

A block is x ``[size]``, float32, with the bounds lo and hi, float64: what the runtime computes has
to lie between them. Candidates for a scale come from the element that is largest, and from a level
that it may stand on; the first candidate that all elements agree with is taken. Most candidates
fail at their first or second element, so that trying hundreds costs little.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

TRIES = 4096
"""Offsets tried for one pair of codes; far more than 8 and 11 bits of mantissa leave open."""
SLACK = 1e-9  # of a bound, for the rounding of its quotient
ZERO = np.float32(0)

compiled = numba.njit(cache=True, nogil=True)
inline = numba.njit(cache=True)


@inline  # type: ignore[untyped-decorator]
def nearest(t: Any, table: Any, first: Any) -> Any:
    """The level nearest to t (`Levels.bins`)."""
    at = np.floor(2.0 * t) - first
    if not at > 0:
        return table[0]
    return table[min(int(min(at, 1e6)), len(table) - 1)]


@inline  # type: ignore[untyped-decorator]
def largest(x: Any) -> Any:
    """Where |x| is largest."""
    at = 0
    for j in range(1, len(x)):
        if abs(x[j]) > abs(x[at]):
            at = j
    return at


@inline  # type: ignore[untyped-decorator]
def sign_of_zeros(x: Any) -> Any:
    """The sign of the scale that gives zeros the sign they have: 1 where there are none."""
    for j in range(len(x)):
        if x[j] == ZERO:
            return -1.0 if np.signbit(x[j]) else 1.0
    return 1.0


@inline  # type: ignore[untyped-decorator]
def first_at(scales: Any, low: Any) -> Any:
    """Index of the first of the sorted scales that is not below `low`, but for rounding."""
    return np.searchsorted(scales, low - SLACK * abs(low))


@inline  # type: ignore[untyped-decorator]
def _holds(x: Any, lo: Any, hi: Any, d: Any, table: Any, first: Any, span: Any) -> Any:
    """Whether d·level gives every element; levels in use reach over at most `span`, 0 included."""
    bottom, top = ZERO, ZERO
    for j in range(len(x)):
        level = nearest(np.float64(x[j]) / np.float64(d), table, first)
        v = np.float32(d * level)
        if not (lo[j] <= v <= hi[j]):
            return False
        bottom, top = min(bottom, level), max(top, level)
        if top - bottom > span:
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _one(
    x: Any,
    lo: Any,
    hi: Any,
    levels: Any,
    table: Any,
    first: Any,
    scales: Any,
    signed: Any,
    span: Any,
) -> Any:
    """(found, d) of one block."""
    at = largest(x)
    if x[at] == ZERO:
        return True, ZERO
    wanted = sign_of_zeros(x)
    for turn in range(2):
        sign = wanted if turn == 0 else -wanted
        if sign < 0 and not signed:
            continue
        for level in levels:
            if (level > 0) != ((x[at] > 0) == (sign > 0)) or level == 0:
                continue
            a, b = abs(lo[at] / level), abs(hi[at] / level)
            low, high = min(a, b), max(a, b)
            for i in range(first_at(scales, low), len(scales)):
                if scales[i] > high * (1 + SLACK):
                    break
                d = np.float32(sign * scales[i])
                if d != ZERO and _holds(x, lo, hi, d, table, first, span):
                    return True, d
    return False, ZERO


@compiled  # type: ignore[untyped-decorator]
def one_scale(
    x: Any,
    lo: Any,
    hi: Any,
    levels: Any,
    table: Any,
    first: Any,
    scales: Any,
    signed: Any,
    span: Any,
    found: Any,
    out: Any,
) -> None:
    """d of x = d·level for blocks ``[n, size]``. `levels` come in the order in which the largest
    element is tried on them, `scales` are the positive numbers that d may be, sorted."""
    for i in range(len(x)):
        found[i], out[i] = _one(x[i], lo[i], hi[i], levels, table, first, scales, signed, span)


@inline  # type: ignore[untyped-decorator]
def _holds_offset(x: Any, lo: Any, hi: Any, d: Any, m: Any, top: Any) -> Any:
    """Whether d·q + m gives every element, rounded as the runtime rounds it."""
    for j in range(len(x)):
        q = np.rint((np.float64(x[j]) - np.float64(m)) / np.float64(d))
        q = min(max(q, 0.0), top)
        v = np.float32(np.float32(d * np.float32(q)) + m)
        if not (lo[j] <= v <= hi[j]):
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _constant(lo: Any, hi: Any, top: Any, halves: Any) -> Any:
    """(found, d, m) of a block whose elements are alike: an offset alone, or a scale alone."""
    at = first_at(halves, lo)
    if at < len(halves) and halves[at] <= hi:
        return True, ZERO, halves[at]
    for q in range(1, int(top) + 1):
        at = first_at(halves, lo / q)
        if at < len(halves) and lo <= np.float64(halves[at]) * q <= hi:
            return True, halves[at], ZERO
    return False, ZERO, ZERO


@inline  # type: ignore[untyped-decorator]
def _offset(x: Any, lo: Any, hi: Any, top: Any, halves: Any) -> Any:
    """(found, d, m) of one block, d > 0. The smallest element stands on code a, the largest on
    a + r: that bounds d, and with d it bounds m."""
    i, j = np.argmin(x), np.argmax(x)
    if x[i] == x[j]:
        return _constant(lo[i], hi[i], top, halves)
    for r in range(int(top), 0, -1):
        low, high = (lo[j] - hi[i]) / r, (hi[j] - lo[i]) / r
        for a in range(int(top) - r + 1):
            tries = 0
            for k in range(first_at(halves, low), len(halves)):
                d = halves[k]
                if d > high * (1 + SLACK) or tries > TRIES:
                    break
                if d <= ZERO:
                    continue
                at_least = max(lo[i] - a * d, lo[j] - (a + r) * d)
                at_most = min(hi[i] - a * d, hi[j] - (a + r) * d)
                for n in range(first_at(halves, at_least), len(halves)):
                    if halves[n] > at_most + SLACK * abs(at_most) or tries > TRIES:
                        break
                    tries += 1
                    if _holds_offset(x, lo, hi, d, halves[n], top):
                        return True, d, halves[n]
    return False, ZERO, ZERO


@compiled  # type: ignore[untyped-decorator]
def scale_offset(
    x: Any, lo: Any, hi: Any, top: Any, halves: Any, found: Any, out_d: Any, out_m: Any
) -> None:
    """d > 0 and m of x = d·q + m for blocks ``[n, size]``, q from 0 to `top`. `halves` are all
    finite float16, sorted."""
    for i in range(len(x)):
        found[i], out_d[i], out_m[i] = _offset(x[i], lo[i], hi[i], top, halves)
