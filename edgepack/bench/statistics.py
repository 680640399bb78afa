"""Medians and their spread, ratios of paired runs, and whether speed fell meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles

COVERAGE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Median of ratios of paired runs, with an interval for the true median."""

    median: float
    low: float
    high: float
    coverage: float
    """Chance that the interval holds the true median, whatever the distribution."""

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """`over` divided by `under`, run by run; what slows both of a pair down cancels.

    The interval goes from the k-th smallest ratio to the k-th largest, with the largest k whose
    coverage is at least 95 % (the sign test turned round; Hahn & Meeker, Statistical Intervals,
    section 5.2); with fewer than six pairs it is all of them, and covers less.
    """
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    count = len(ratios)
    k = 1
    while k + 1 <= (count + 1) // 2 and _coverage(count, k + 1) >= COVERAGE:
        k += 1
    return Ratio(median(ratios), ratios[k - 1], ratios[-k], _coverage(count, k))


def _coverage(count: int, k: int) -> float:
    """Chance that the true median lies between the k-th smallest and the k-th largest of `count`
    values: 1 − 2 P(Binomial(count, ½) < k)."""
    below = sum(comb(count, i) for i in range(k))
    return 1.0 - 2 * below / float(2**count)


def spread(values: Sequence[float]) -> float:
    """Half of the middle half's width, as a share of the median: 0.03 is ± 3 %."""
    if len(values) < 2:
        return 0.0
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / (2 * middle)


def change(series: Sequence[Sequence[float]]) -> float:
    """How much slower the last third of the rounds was than the first: 0.1 is 10 % more time.

    Each of the `series` is one case's seconds, round by round; each is divided by its median first,
    so that all count alike.
    """
    first, last = [], []
    for seconds in series:
        third = max(1, len(seconds) // 3)
        middle = median(seconds)
        first += [value / middle for value in seconds[:third]]
        last += [value / middle for value in seconds[-third:]]
    return median(last) / median(first) - 1 if first else 0.0
