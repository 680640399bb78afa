"""The loops of `_exact` for types with scales on two levels: d times an integer per sub-block.

First every sub-block alone: which real scales its elements allow, as intervals. Then one d for all:
of the sub-block with the largest scale every integer is tried, which leaves a few d, and each other
sub-block has to have an integer that brings d into its interval. What passes is held against all
elements, with the rounding of the runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepack.formats._exact_kernels import (
    SLACK,
    ZERO,
    compiled,
    first_at,
    inline,
    largest,
    nearest,
    sign_of_zeros,
)

KEEP = 6
"""Intervals kept per sub-block; more than one remain where the codes in use are few."""


@inline  # type: ignore[untyped-decorator]
def _interval(x: Any, lo: Any, hi: Any, at: Any, level: Any, table: Any, first: Any) -> Any:
    """The scales with which x[at] stands on `level` and all others on levels; empty: low > high."""
    low, high = -np.inf, np.inf
    scale = np.float64(x[at]) / level
    for j in range(len(x)):
        k = np.float64(nearest(x[j] / scale, table, first))
        if k == 0:
            if not (lo[j] <= 0 <= hi[j]):
                return 1.0, 0.0
            continue
        a, b = lo[j] / k, hi[j] / k
        low, high = max(low, min(a, b)), min(high, max(a, b))
        if low > high + SLACK * abs(high):
            return 1.0, 0.0
    return low, high


@inline  # type: ignore[untyped-decorator]
def _intervals(x: Any, lo: Any, hi: Any, levels: Any, table: Any, first: Any, out: Any) -> Any:
    """Write up to `KEEP` intervals of one sub-block to `out`; how many there are."""
    at = largest(x)
    wanted = sign_of_zeros(x)
    count = 0
    for turn in range(2):
        sign = wanted if turn == 0 else -wanted
        for level in levels:
            if level == 0 or (level > 0) != ((x[at] > 0) == (sign > 0)):
                continue
            low, high = _interval(x, lo, hi, at, np.float64(level), table, first)
            if low <= high + SLACK * abs(high):
                out[count, 0], out[count, 1] = low, high
                count += 1
                if count == KEEP:
                    return count
    return count


@inline  # type: ignore[untyped-decorator]
def _integer(low: Any, high: Any, d: Any, base: Any, step: Any, count: Any) -> Any:
    """Index i of an integer base + step·i with d·(base + step·i) in the interval; -1: none."""
    a, b = low / d, high / d
    a, b = min(a, b), max(a, b)
    slack = SLACK * max(abs(a), abs(b))
    i = np.ceil((a - slack - base) / step)
    if i < 0:
        i = 0.0
    if i < count and base + step * i <= b + slack:
        return int(i)
    return -1


@inline  # type: ignore[untyped-decorator]
def _all_integers(
    ranges: Any, counts: Any, d: Any, base: Any, step: Any, many: Any, out: Any
) -> Any:
    """Write an integer's index for every sub-block; whether all have one."""
    for s in range(len(counts)):
        out[s] = -1
        for n in range(counts[s]):
            i = _integer(ranges[s, n, 0], ranges[s, n, 1], d, base, step, many)
            if i >= 0:
                out[s] = i
                break
        if counts[s] < 0:  # zeros alone: the integer 0, or any where a level is 0
            out[s] = _integer(0.0, 0.0, d, base, step, many)
        if out[s] < 0:
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _holds(
    x: Any, lo: Any, hi: Any, unit: Any, d: Any, c: Any, s: Any, table: Any, first: Any
) -> Any:
    """Whether (d·c)·level gives every element of sub-block s."""
    scale = np.float32(d * np.float32(c))
    for j in range(s * unit, (s + 1) * unit):
        if scale == ZERO:
            v = ZERO
        else:
            v = np.float32(scale * nearest(np.float64(x[j]) / np.float64(scale), table, first))
        if not (lo[j] <= v <= hi[j]):
            return False
    return True


@inline  # type: ignore[untyped-decorator]
def _largest_scale(ranges: Any, counts: Any) -> Any:
    """The sub-block with the largest scale; -1: all are zero."""
    at, most = -1, 0.0
    for s in range(len(counts)):
        if counts[s] > 0:
            size = max(abs(ranges[s, 0, 0]), abs(ranges[s, 0, 1]))
            if size > most:
                at, most = s, size
    return at


@inline  # type: ignore[untyped-decorator]
def _scales(
    x: Any,
    lo: Any,
    hi: Any,
    unit: Any,
    levels: Any,
    table: Any,
    first: Any,
    base: Any,
    step: Any,
    order: Any,
    factor: Any,
    halves: Any,
    out: Any,
) -> Any:
    """(found, d) of one block; the integers' indices go to `out`."""
    subs = len(x) // unit
    ranges, counts = np.empty((subs, KEEP, 2)), np.zeros(subs, np.int64)
    for s in range(subs):
        here = slice(s * unit, (s + 1) * unit)
        if x[here][largest(x[here])] == ZERO:
            counts[s] = -1
            continue
        counts[s] = _intervals(x[here], lo[here], hi[here], levels, table, first, ranges[s])
        if counts[s] == 0:
            return False, ZERO
    at = _largest_scale(ranges, counts)
    if at < 0:
        for s in range(subs):
            out[s] = order[len(order) - 1]
        return True, ZERO
    for n in range(counts[at]):
        for i in order:
            c = (base + step * i) * factor
            if c == 0:
                continue
            a, b = ranges[at, n, 0] / c, ranges[at, n, 1] / c
            low, high = min(a, b), max(a, b)
            for k in range(first_at(halves, low), len(halves)):
                if halves[k] > high + SLACK * abs(high):
                    break
                d = halves[k]
                real = np.float64(d) * factor
                if d == ZERO or not _all_integers(
                    ranges, counts, real, base, step, len(order), out
                ):
                    continue
                whole = True
                for s in range(subs):
                    c32 = base + step * out[s]
                    scaled = np.float32(np.float32(factor) * d)
                    whole = whole and _holds(x, lo, hi, unit, scaled, c32, s, table, first)
                if whole:
                    return True, d
    return False, ZERO


@compiled  # type: ignore[untyped-decorator]
def scales(
    x: Any,
    lo: Any,
    hi: Any,
    unit: Any,
    levels: Any,
    table: Any,
    first: Any,
    base: Any,
    step: Any,
    order: Any,
    factor: Any,
    halves: Any,
    found: Any,
    out_d: Any,
    out: Any,
) -> None:
    """d and the indices i ``[n, subs]`` of x = factor·d·(base + step·i)·level for blocks
    ``[n, size]`` of sub-blocks of `unit`; `order` has the indices in the order of trying."""
    for b in range(len(x)):
        one = _scales(
            x[b],
            lo[b],
            hi[b],
            unit,
            levels,
            table,
            first,
            base,
            step,
            order,
            factor,
            halves,
            out[b],
        )
        found[b], out_d[b] = one
