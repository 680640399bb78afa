"""The loops of `_codebook`, compiled: the point of a grid nearest to 8 or 4 columns, and the search
for the scales of a block.

With weights D, scale s and y = |x|/s, a point g costs Σ D·(y − g)² if every sign may follow its x.
Where the number of minus signs must be even and is odd, one sign is flipped. The cheapest flip adds
min_i 4·D_i·y_i·g_i, and the choice of the point includes it, so that the result is optimal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# Numba's cache of these loops depends on this file alone: touch it after changing the other one.
from edgepack.formats._scale_kernels import _half, _insert, _ratio, _reciprocal, _sorted_into

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]

KEEP = 4
"""Candidate grids per block."""
REFITS = 1
TOP = 31
"""The largest 1 + 2·scale."""
ZERO, ONE, TWO, FOUR = (np.float32(v) for v in (0, 1, 2, 4))
INFINITE = np.float32(np.inf)
LANES = 16

_fast = numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "nnan"})
_compiled = numba.njit(cache=True, nogil=True)


class Book(NamedTuple):
    """A grid as the kernels need it."""

    points: Float
    """Magnitudes ``[tuple, points]``."""
    digits: Codes
    """Their places in the upper half of `levels`, ``[points, tuple]``."""
    levels: Float
    """The signed magnitudes, increasing."""
    group: int
    """Columns encoded together: one tuple or, where they share their signs' byte, two."""
    even: bool
    """Whether the number of minus signs in a group is even."""


class Scratch(NamedTuple):
    """Arrays to work in, so that the loops allocate none."""

    y: Float
    """|x|/s of a group."""
    codes: Codes
    score: Float
    """Cost of every point."""
    low: Float


Room = Scratch
"""The name in numba's caches of earlier versions. numba unpickles such a cache before it sees
that it is old, so a class that kernels take never loses a name."""


@_fast  # type: ignore[untyped-decorator]
def new_scratch(book: Any) -> Any:
    """Allocate the arrays for one thread."""
    score, low = np.empty(book.points.shape[1], np.float32), np.empty(LANES, np.float32)
    return Scratch(np.empty(book.group, np.float32), np.empty(book.group, np.uint8), score, low)


@_fast  # type: ignore[untyped-decorator]
def _score(y: Any, D: Any, points: Any, score: Any) -> None:
    """Σ D·g·(g − 2y) of every point: its cost minus the cost of 0."""
    for q in range(0, len(points), 4):
        g0, g1, g2, g3 = points[q], points[q + 1], points[q + 2], points[q + 3]
        D0, D1, D2, D3 = D[q], D[q + 1], D[q + 2], D[q + 3]
        y0, y1, y2, y3 = TWO * y[q], TWO * y[q + 1], TWO * y[q + 2], TWO * y[q + 3]
        for k in range(len(score)):
            first = D0 * g0[k] * (g0[k] - y0) + D1 * g1[k] * (g1[k] - y1)
            last = D2 * g2[k] * (g2[k] - y2) + D3 * g3[k] * (g3[k] - y3)
            score[k] = first + last + (score[k] if q else ZERO)


@_fast  # type: ignore[untyped-decorator]
def _argmin(score: Any, low: Any) -> Any:
    """Index of the smallest score; in lanes, which the processor compares in parallel."""
    low[:] = INFINITE
    for k in range(0, len(score), LANES):
        for i in range(LANES):
            low[i] = min(low[i], score[k + i])
    at, least = 0, low[0]
    for i in range(1, LANES):
        if low[i] < least:
            at, least = i, low[i]
    while at + LANES < len(score) and score[at] != least:
        at += LANES
    return at


@_fast  # type: ignore[untyped-decorator]
def _turn(y: Any, D: Any, points: Any, k: Any) -> Any:
    """Cost of the cheapest sign flip with point k, and the column that is flipped."""
    at, least = 0, INFINITE
    for i in range(len(points)):
        cost = D[i] * y[i] * points[i, k]
        if cost < least:
            at, least = i, cost
    return FOUR * least, at


@_fast  # type: ignore[untyped-decorator]
def _turned(y: Any, D: Any, points: Any, score: Any, k: Any) -> Any:
    """Cost, point and column of the best flip; k is the best point without a flip."""
    cost, at = _turn(y, D, points, k)
    least = score[k] + cost
    for other in range(len(score)):
        if score[other] < least:
            cost, i = _turn(y, D, points, other)
            if score[other] + cost < least:
                least, k, at = score[other] + cost, other, i
    return least, k, at


@_fast  # type: ignore[untyped-decorator]
def choose(x: Any, D: Any, s: Any, book: Any, scratch: Any, codes: Any) -> None:
    """Codes of a group that minimise Σ D·(x − s·level)²; all arrays have length ``book.group``."""
    y, score = scratch.y, scratch.score
    inverse, size, half = _reciprocal(s), len(book.points), len(book.levels) // 2
    odd = False
    for i in range(book.group):
        y[i] = abs(x[i] * inverse)
        odd ^= x[i] * inverse < ZERO
    odd &= book.even
    gain, part, point, turn = INFINITE, 0, 0, -1
    for a in range(0, book.group, size):
        here = slice(a, a + size)
        _score(y[here], D[here], book.points, score)
        k = _argmin(score, scratch.low)
        for i in range(size):
            codes[a + i] = book.digits[k, i]
        if odd:
            least, other, at = _turned(y[here], D[here], book.points, score, k)
            if least - score[k] < gain:
                gain, part, point, turn = least - score[k], a, other, a + at
    if odd:
        for i in range(size):
            codes[part + i] = book.digits[point, i]
    for i in range(book.group):
        minus = np.int32(x[i] * inverse < ZERO) ^ np.int32(i == turn)
        codes[i] = half + (np.int32(codes[i]) ^ -minus)  # half − 1 − code where there is a minus


@_compiled  # type: ignore[untyped-decorator]
def encode(x: Float, w: Float, scale: Float, book: Book, codes: Codes) -> None:
    """Codes of x ``[rows, columns]`` with weights w, one scale per group ``[rows, groups]``."""
    group = book.group
    work = new_scratch(book)
    for r in range(len(x)):
        for g in range(scale.shape[1]):
            here = slice(g * group, (g + 1) * group)
            choose(x[r, here], w[r, here], scale[r, g], book, work, codes[r, here])


@_fast  # type: ignore[untyped-decorator]
def _fit(x: Any, w: Any, s: Any, book: Any, scratch: Any) -> Any:
    """Moments (first = Σ w·x·level, second = Σ w·level²) of a sub-block under its best codes for s.
    With another scale s' these codes cost Σ w·x² − 2·s'·first + s'²·second."""
    first, second = ZERO, ZERO
    for a in range(0, len(x), book.group):
        here = slice(a, a + book.group)
        choose(x[here], w[here], s, book, scratch, scratch.codes)
        for i in range(book.group):
            level = book.levels[scratch.codes[i]]
            first += w[a + i] * x[a + i] * level
            second += w[a + i] * level * level
    return first, second


@_fast  # type: ignore[untyped-decorator]
def _least(first: Any, second: Any, s: Any) -> Any:
    """Cost with scale s of the best of these codes, minus Σ w·x²."""
    least = INFINITE
    for m in range(len(first)):
        least = min(least, s * (s * second[m] - TWO * first[m]))
    return least


@_fast  # type: ignore[untyped-decorator]
def _explore(x: Any, w: Any, probes: Any, book: Any, scratch: Any, first: Any, second: Any) -> Any:
    """Moments ``[probes + REFITS]`` of a sub-block's codes under many scales; the best scale."""
    total, square = ZERO, ZERO
    for j in range(len(x)):
        total += w[j]
        square += w[j] * x[j] * x[j]
    size = np.sqrt(_ratio(square, total))
    best, least = ZERO, ZERO
    for m in range(len(first)):
        s = size * probes[m] if m < len(probes) else best
        first[m], second[m] = _fit(x, w, s, book, scratch)
        gain = -first[m] * _ratio(first[m], second[m])
        if gain < least:
            best, least = _ratio(first[m], second[m]), gain
    return best


@_fast  # type: ignore[untyped-decorator]
def _steps(s: Any, unit: Any) -> Any:
    """The odd number up to `TOP` whose multiple of `unit` is nearest to s."""
    return ONE + TWO * min(max(np.rint((s * _reciprocal(unit) - ONE) / TWO), ZERO), (TOP - 1) / TWO)


@_fast  # type: ignore[untyped-decorator]
def _whole(d: Any, best: Any, first: Any, second: Any, odd: Any) -> Any:
    """The estimated error of a block with unit scale d; fills the multiples `odd` ``[subs]``."""
    error = ZERO
    for b in range(len(best)):
        centre, least = _steps(best[b], d), INFINITE
        for step in range(-4, 5, 2):
            tried = min(max(centre + np.float32(step), ONE), np.float32(TOP))
            cost = _least(first[b], second[b], d * tried)
            if cost < least:
                least, odd[b] = cost, tried
        error += least
    return error


@_compiled  # type: ignore[untyped-decorator]
def _leaders(
    start: Any, spans: Any, factor: Any, best: Any, first: Any, second: Any, odd: Any, ds: Any
) -> Any:
    """Fill ds ``[keep]`` with the best d of each group of start·spans, best first; returns their
    number."""
    errors, used = np.empty(len(ds), np.float32), 0
    for g in range(len(spans)):
        least, leader = INFINITE, ZERO
        for m in range(spans.shape[1]):
            d = _half(start * spans[g, m])
            error = _whole(d * factor, best, first, second, odd)
            if error < least:
                least, leader = error, d
        _insert(ds, _sorted_into(errors, used, least), leader)
        used = min(used + 1, len(ds))
    return used


@_compiled  # type: ignore[untyped-decorator]
def _settle(x: Any, w: Any, d: Any, factor: Any, book: Any, scratch: Any, odd: Any) -> Any:
    """True error and d: choose codes for the stored scales, fit d to them, choose codes again."""
    error, first, second = ZERO, ZERO, ZERO
    for b in range(len(x)):
        s, steps = d * factor * odd[b], factor * odd[b]
        p, q = _fit(x[b], w[b], s, book, scratch)
        error += s * (s * q - TWO * p)
        first += steps * p
        second += steps * steps * q
    fitted, again = _half(_ratio(first, second)), ZERO
    for b in range(len(x)):
        s = fitted * factor * odd[b]
        p, q = _fit(x[b], w[b], s, book, scratch)
        again += s * (s * q - TWO * p)
    if again < error:
        return again, fitted
    return error, d


@_compiled  # type: ignore[untyped-decorator]
def propose(
    x: Float,
    w: Float,
    probes: Float,
    spans: Float,
    book: Book,
    unit: int,
    factor: np.float32,
    ds: Float,
    scales: Codes,
) -> None:
    """Grids of blocks x, w ``[n, size]``: fills ds ``[n, keep]`` and scales ``[n, keep, subs]``,
    the best first.

    First, each sub-block alone tries many scales: `probes` times its size (see `_explore`). Their
    moments give the error under any d. The d that puts the largest scale on `TOP` is multiplied by
    each of `spans` ``[groups, members]``, and the best of each group is kept (see `_leaders`). The
    kept ones choose their codes anew and are ranked by the true error.
    """
    n, keep, subs = scales.shape
    work, tries = new_scratch(book), len(probes) + REFITS
    first, second = np.empty((subs, tries), np.float32), np.empty((subs, tries), np.float32)
    best, odd = np.empty(subs, np.float32), np.empty(subs, np.float32)
    chosen, errors = np.zeros(keep, np.float32), np.empty(keep, np.float32)
    for r in range(n):
        xr, wr = x[r].reshape(subs, unit), w[r].reshape(subs, unit)
        for b in range(subs):
            best[b] = _explore(xr[b], wr[b], probes, book, work, first[b], second[b])
        start = best.max() / (factor * TOP)
        for k in range(_leaders(start, spans, factor, best, first, second, odd, chosen)):
            _whole(chosen[k] * factor, best, first, second, odd)
            error, d = _settle(xr, wr, chosen[k], factor, book, work, odd)
            at = _sorted_into(errors, k, error)
            _insert(ds[r], at, d)
            for later in range(keep - 1, at, -1):
                scales[r, later] = scales[r, later - 1]
            for b in range(subs):
                scales[r, at, b] = np.uint8((odd[b] - ONE) / TWO)
