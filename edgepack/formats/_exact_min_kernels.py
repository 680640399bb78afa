"""The loops of `_exact` for K-quants with mins: x = (d·scale)·q − dmin·min.

A sub-block alone allows real pairs (s, t) of x = s·q − t. For given codes they are a polygon: all
elements on code q give one strip L_q ≤ s·q − t ≤ H_q. Its shadow on the axis of s is known from
pairs of codes, and with s fixed, t has an interval. So d is found from the sub-block with the
largest s, as in `_exact_k_kernels`, and dmin likewise once the scales are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepack.formats._exact_kernels import SLACK, ZERO, compiled, first_at, inline

KEEP = 16
"""Assignments of codes kept per sub-block."""
OPTIONS = 16
"""Pairs of a scale and an interval of t kept per sub-block."""


@inline  # type: ignore[untyped-decorator]
def _reach(x: Any, lo: Any, hi: Any, j: Any) -> Any:
    """How far from x[j] a number may be that rounds to it; at powers of two the sides differ."""
    return max(hi[j] - x[j], x[j] - lo[j])


@inline  # type: ignore[untyped-decorator]
def _strips(x: Any, lo: Any, hi: Any, s: Any, t: Any, wide: Any, L: Any, H: Any) -> Any:
    """Write the strips of the codes nearest on s·q − t; False if an element is further from its
    code than bounds and anchors (`wide`) allow."""
    top = len(L) - 1
    L[:], H[:] = -np.inf, np.inf
    for j in range(len(x)):
        q = min(max(np.rint((x[j] + t) / s), 0.0), float(top))
        if abs(x[j] - (s * q - t)) > _reach(x, lo, hi, j) + wide:
            return False
        at = int(q)
        L[at], H[at] = max(L[at], lo[j]), min(H[at], hi[j])
    return True


@inline  # type: ignore[untyped-decorator]
def _shadow(L: Any, H: Any, slack: Any) -> Any:
    """(low, high) of s over the polygon; low > high if it is empty."""
    low, high = 0.0, np.inf
    for p in range(len(L)):
        if L[p] == -np.inf:
            continue
        if L[p] > H[p]:
            return 1.0, 0.0
        for q in range(p):
            if L[q] == -np.inf:
                continue
            low = max(low, (L[p] - H[q] - slack) / (p - q))
            high = min(high, (H[p] - L[q] + slack) / (p - q))
    return low, high


@inline  # type: ignore[untyped-decorator]
def _offsets(L: Any, H: Any, s: Any) -> Any:
    """(low, high) of t, for a given s."""
    low, high = -np.inf, np.inf
    for q in range(len(L)):
        if L[q] > -np.inf:
            low, high = max(low, s * q - H[q]), min(high, s * q - L[q])
    return low, high


@inline  # type: ignore[untyped-decorator]
def _assign(x: Any, lo: Any, hi: Any, keep: Any, ranges: Any, L: Any, H: Any) -> Any:
    """Write up to `keep` assignments of codes of one sub-block; how many there are."""
    i, j, top, count = np.argmin(x), np.argmax(x), L.shape[1] - 1, 0
    if x[i] == x[j]:  # any code, and any scale that it allows
        for n in range(min(keep, top + 1)):
            q = 0 if n == 0 else top + 1 - n
            L[n, :], H[n, :] = -np.inf, np.inf
            L[n, q], H[n, q] = lo[i], hi[i]
            ranges[n, 0], ranges[n, 1] = 0.0, np.inf
        return min(keep, top + 1)
    slack = SLACK * max(abs(x[i]), abs(x[j]))
    wide = max(_reach(x, lo, hi, i), _reach(x, lo, hi, j)) + slack
    for r in range(top, 0, -1):
        s = (np.float64(x[j]) - np.float64(x[i])) / r
        for a in range(top - r + 1):
            if not _strips(x, lo, hi, s, a * s - x[i], wide, L[count], H[count]):
                continue
            low, high = _shadow(L[count], H[count], slack)
            if low <= high:
                ranges[count, 0], ranges[count, 1] = low, high
                count += 1
                if count == keep:
                    return count
    return count


@inline  # type: ignore[untyped-decorator]
def _options(
    ranges: Any, L: Any, H: Any, count: Any, d: Any, most: Any, slack: Any, out: Any
) -> Any:
    """Write (integer, low and high of t) for the integers that d allows one sub-block."""
    found = 0
    for n in range(count):
        c = max(np.ceil(ranges[n, 0] / d * (1 - SLACK)), 0.0)
        last = min(ranges[n, 1] / d * (1 + SLACK), float(most))
        while c <= last and found < OPTIONS:
            low, high = _offsets(L[n], H[n], d * c)
            if low <= high + slack:
                out[found, 0], out[found, 1], out[found, 2] = c, low - slack, high + slack
                found += 1
            c += 1
    return found


@inline  # type: ignore[untyped-decorator]
def _mins(options: Any, counts: Any, dmin: Any, most: Any, scales: Any, mins: Any) -> Any:
    """Write scale and min of every sub-block for a given dmin; whether all have them."""
    for s in range(len(counts)):
        scales[s] = -1
        for n in range(counts[s]):
            low, high = options[s, n, 1], options[s, n, 2]
            if dmin == 0:
                c = 0.0 if low <= 0 <= high else -1.0
            else:
                a, b = low / dmin, high / dmin
                c = max(np.ceil(min(a, b) * (1 - SLACK)), 0.0)
                if c > max(a, b) * (1 + SLACK) or c > most:
                    c = -1.0
            if c >= 0:
                scales[s], mins[s] = int(options[s, n, 0]), int(c)
                break
        if scales[s] < 0:
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _holds(
    x: Any, lo: Any, hi: Any, unit: Any, top: Any, d: Any, dmin: Any, scales: Any, mins: Any
) -> Any:
    """Whether every element is what the runtime makes of these numbers."""
    for j in range(len(x)):
        s = np.float32(d * np.float32(scales[j // unit]))
        t = np.float32(dmin * np.float32(mins[j // unit]))
        q = 0.0
        if s != ZERO:
            q = np.rint((np.float64(x[j]) + np.float64(t)) / np.float64(s))
            q = min(max(q, 0.0), float(top))
        v = np.float32(np.float32(s * np.float32(q)) - t)
        if not (lo[j] <= v <= hi[j]):
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _with_scale(
    x: Any,
    lo: Any,
    hi: Any,
    unit: Any,
    top: Any,
    most: Any,
    halves: Any,
    d: Any,
    options: Any,
    counts: Any,
    scales: Any,
    mins: Any,
) -> Any:
    """(found, dmin) with d given. Every integer is tried for one sub-block: that with the largest t
    of those whose t is certain, and if there is none, for one after the other."""
    at, size = -1, 0.0
    for s in range(len(counts)):
        middle = abs(options[s, 0, 1] + options[s, 0, 2])
        if counts[s] == 1 and middle >= size:
            at, size = s, middle
    for anchor in range(0 if at < 0 else at, len(counts) if at < 0 else at + 1):
        for n in range(counts[anchor]):
            for c in range(most, -1, -1):
                low, high = options[anchor, n, 1], options[anchor, n, 2]
                low, high = (low / c, high / c) if c > 0 else (0.0, 0.0)
                for k in range(first_at(halves, low), len(halves)):
                    dmin = halves[k]
                    if dmin > high + SLACK * abs(high):
                        break
                    if _mins(options, counts, np.float64(dmin), most, scales, mins) and _holds(
                        x, lo, hi, unit, top, d, dmin, scales, mins
                    ):
                        return True, dmin
    return False, ZERO


@inline  # type: ignore[untyped-decorator]
def _block(
    x: Any,
    lo: Any,
    hi: Any,
    keep: Any,
    unit: Any,
    top: Any,
    most: Any,
    halves: Any,
    scales: Any,
    mins: Any,
) -> Any:
    """(found, d, dmin) of one block, d ≥ 0, by the first `keep` assignments of each sub-block."""
    subs = len(x) // unit
    ranges, counts = np.empty((subs, KEEP, 2)), np.zeros(subs, np.int64)
    L, H = np.empty((subs, KEEP, top + 1)), np.empty((subs, KEEP, top + 1))
    options, many = np.empty((subs, OPTIONS, 3)), np.zeros(subs, np.int64)
    at, size = -1, 0.0
    for s in range(subs):
        here = slice(s * unit, (s + 1) * unit)
        counts[s] = _assign(x[here], lo[here], hi[here], keep, ranges[s], L[s], H[s])
        if counts[s] == 0:
            return False, ZERO, ZERO
        if size < ranges[s, 0, 1] < np.inf:
            at, size = s, ranges[s, 0, 1]
    slack = SLACK * np.max(np.abs(x))
    first, last = (most, 0) if at >= 0 else (0, -1)
    for n in range(counts[max(at, 0)]):
        for c in range(first, last, -1):
            low, high = ZERO, ZERO
            if at >= 0:
                low, high = ranges[at, n, 0] / c, ranges[at, n, 1] / c
            for k in range(first_at(halves, low), len(halves)):
                d = halves[k]
                if d > high * (1 + SLACK):
                    break
                if d < ZERO or (d == ZERO and at >= 0):
                    continue
                real = max(np.float64(d), 1e-30)
                whole = True
                for s in range(subs):
                    many[s] = _options(
                        ranges[s], L[s], H[s], counts[s], real, most, slack, options[s]
                    )
                    if many[s] == 0:
                        whole = False
                        break
                if not whole:
                    continue
                found, dmin = _with_scale(
                    x, lo, hi, unit, top, most, halves, d, options, many, scales, mins
                )
                if found:
                    return True, d, dmin
    return False, ZERO, ZERO


@compiled  # type: ignore[untyped-decorator]
def scales_mins(
    x: Any,
    lo: Any,
    hi: Any,
    unit: Any,
    top: Any,
    most: Any,
    halves: Any,
    found: Any,
    out_d: Any,
    out_dmin: Any,
    scales: Any,
    mins: Any,
) -> None:
    """d, dmin ``[n]`` and the integers, 0 to `most`, ``[n, subs]`` of x = d·scale·q − dmin·min for
    blocks ``[n, size]`` of sub-blocks of `unit`, q from 0 to `top`; d ≥ 0."""
    for b in range(len(x)):
        for keep in (1, KEEP):  # the first assignment is nearly always the one
            one = _block(x[b], lo[b], hi[b], keep, unit, top, most, halves, scales[b], mins[b])
            found[b], out_d[b], out_dmin[b] = one
            if found[b]:
                break
