"""Which elements have ranks in a range, without sorting. A float32 is found by counting its upper
16 bits, then the lower ones of those that share them: two passes, 1 MiB of counters.

Elements are in ascending order; of equal ones, the one with the smaller index comes first. So the
choice is one for all machines. mergekit sorts, and which of equal values it keeps depends on the
CPU's instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgepack.merge.methods._blocks import blocks

Values = Callable[[slice], Tensor]
"""The values of a block, a flat float32 tensor; the same at every call."""

_compiled = numba.njit(cache=True, nogil=True)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _key(bits: Any) -> Any:
    """A number that orders as the float32 with those bits does."""
    return ~bits if bits >> np.uint32(31) else bits | np.uint32(1 << 31)


@_compiled  # type: ignore[untyped-decorator]
def _count_upper(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    for i in range(bits.size):
        counts[_key(bits[i]) >> np.uint32(16)] += 1


@_compiled  # type: ignore[untyped-decorator]
def _count_lower(bits: NDArray[np.uint32], upper: int, counts: NDArray[np.int64]) -> None:
    for i in range(bits.size):
        key = _key(bits[i])
        if key >> np.uint32(16) == upper:
            counts[key & np.uint32(0xFFFF)] += 1


@dataclass(frozen=True)
class Cut:
    """A rank: elements above `value`, and from `index` on those equal to it, have at least it."""

    value: float
    index: int = 0

    def reached(self, values: Tensor, block: slice) -> Tensor:
        """Which elements of a block have at least this rank; bool."""
        if self.index <= block.start:
            return values >= self.value
        result = values > self.value
        if self.index < block.stop:
            later = slice(self.index - block.start, None)
            result[later] |= values[later] == self.value
        return result


EVERYTHING = Cut(-np.inf)


def cuts(values: Values, elements: int, ranks: tuple[int, ...]) -> list[Cut]:
    """The cuts at ranks from 0 (the smallest element) to `elements` (none)."""
    upper = np.zeros(1 << 16, np.int64)
    inner = [rank for rank in ranks if 0 < rank < elements]
    if inner:
        for block in blocks(elements):
            _count_upper(_bits(values(block)), upper)
    return [
        EVERYTHING
        if rank <= 0
        else Cut(np.inf, elements)
        if rank >= elements
        else _cut(values, elements, rank, upper)
        for rank in ranks
    ]


def value_at(values: Values, elements: int, rank: int) -> float:
    """The value of the element of a rank below `elements`."""
    upper = np.zeros(1 << 16, np.int64)
    for block in blocks(elements):
        _count_upper(_bits(values(block)), upper)
    return _find(values, elements, rank, upper)[0]


def _cut(values: Values, elements: int, rank: int, upper: NDArray[np.int64]) -> Cut:
    value, equal_before = _find(values, elements, rank, upper)
    return Cut(value, _end_of_equals(values, elements, value, equal_before))


def _find(values: Values, elements: int, rank: int, upper: NDArray[np.int64]) -> tuple[float, int]:
    """The value at a rank, and how many elements equal to it come before."""
    high, below = _bin(upper, rank)
    lower = np.zeros(1 << 16, np.int64)
    for block in blocks(elements):
        _count_lower(_bits(values(block)), high, lower)
    low, before = _bin(lower, rank - below)
    key = np.uint32(high << 16 | low)
    bits = key & np.uint32(0x7FFFFFFF) if key >> 31 else ~key
    value = float(np.array(bits, np.uint32).view(np.float32))
    return value, rank - below - before


def _bin(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin with the element of that rank, and how many elements the bins before it have."""
    sums = np.cumsum(counts)
    at = int(np.searchsorted(sums, rank, side="right"))
    return at, int(sums[at]) - int(counts[at])


def _end_of_equals(values: Values, elements: int, value: float, number: int) -> int:
    """The index after the first `number` elements that equal `value`."""
    if number == 0:
        return 0
    for block in blocks(elements):
        places = (values(block) == value).nonzero()
        if len(places) >= number:
            return int(block.start) + int(places[number - 1]) + 1
        number -= len(places)
    raise AssertionError("fewer equal values than were counted")


def _bits(values: Tensor) -> NDArray[np.uint32]:
    """float32 as integers. Adding 0 makes −0 a 0, which it is equal to."""
    bits: NDArray[np.uint32] = (values + 0.0).cpu().numpy().view(np.uint32)
    return bits
