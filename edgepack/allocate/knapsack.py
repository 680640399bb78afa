"""A format and a rank for every weight that minimise the KL within a byte budget.

The multiple-choice knapsack: one option per weight, Σ bytes ≤ budget, Σ cost minimal. Costs add up
where errors are small, because the KL is quadratic in them and errors of different weights are
nearly uncorrelated.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store a weight: its bytes, and the KL it adds in nats a token."""

    format: str
    rank: int
    nbytes: int
    cost: float


def cheapest(options: Sequence[Option]) -> Option:
    """The option with the fewest bytes; among equals, the one with the least cost."""
    return min(options, key=lambda o: (o.nbytes, o.cost))


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """The choice for each weight; raises `ValueError` where even the smallest do not fit.

    It starts from the smallest options, and again and again takes the step along a weight's convex
    hull that saves the most cost per byte (the optimum of the relaxed problem). Then the bytes that
    are left go to the largest improvements that still fit.
    """
    chosen = {name: cheapest(found) for name, found in options.items()}
    left = budget - sum(option.nbytes for option in chosen.values())
    if left < 0:
        raise ValueError(f"the smallest choice takes {budget - left} bytes")
    steps: list[tuple[float, str, int]] = []
    hulls = {name: hull(found) for name, found in options.items()}
    for name in hulls:
        _push(steps, hulls, name, 0)
    while steps:
        _, name, index = heapq.heappop(steps)
        better = hulls[name][index]
        more = better.nbytes - chosen[name].nbytes
        if more <= left:
            chosen[name], left = better, left - more
            _push(steps, hulls, name, index)
    return _fill(options, chosen, left)


def hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of cost over bytes, from the smallest option to the best."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.cost)):
        if kept and option.cost >= kept[-1].cost:
            continue
        while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def _gain(a: Option, b: Option) -> float:
    """Cost saved per byte from a to the larger b."""
    return (a.cost - b.cost) / (b.nbytes - a.nbytes) if b.nbytes > a.nbytes else float("inf")


def _push(
    steps: list[tuple[float, str, int]],
    hulls: Mapping[str, list[Option]],
    name: str,
    index: int,
) -> None:
    """Offer the step from hull point `index` of a weight to the next."""
    if index + 1 < len(hulls[name]):
        here, after = hulls[name][index : index + 2]
        heapq.heappush(steps, (-_gain(here, after), name, index + 1))


def _fill(
    options: Mapping[str, Sequence[Option]], chosen: dict[str, Option], left: int
) -> dict[str, Option]:
    """Spend the bytes `left` on the largest improvement that fits, until none fits."""
    while True:
        found = [
            (chosen[name].cost - option.cost, name, option)
            for name, several in options.items()
            for option in several
            if option.nbytes - chosen[name].nbytes <= left and option.cost < chosen[name].cost
        ]
        if not found:
            return chosen
        _, name, option = max(found, key=lambda step: step[:2])
        left -= option.nbytes - chosen[name].nbytes
        chosen[name] = option
