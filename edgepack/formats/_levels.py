"""The code values of a scalar format, before scale and offset."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """Sorted code values, integers; code i stands for ``values[i]``."""

    values: Tensor

    @property
    def bins(self) -> tuple[Tensor, int]:
        """(codes, first): midpoints of integers are multiples of ½, so the code nearest to t is
        ``codes[⌊2t⌋ − first]``, the index clamped."""
        ...

    def nearest(self, t: Tensor) -> Tensor:
        """The level nearest to each t, as float32; may overwrite t."""

    def index(self, t: Tensor) -> Tensor:
        """The code of the level nearest to each t, uint8; may overwrite t."""


def _bins(values: Tensor) -> tuple[Tensor, int]:
    """`Levels.bins` of sorted integers."""
    first, last = 2 * int(values[0]), 2 * int(values[-1])
    halves = torch.arange(first, last + 1) / 2
    midpoints = (values[1:] + values[:-1]) / 2
    return torch.bucketize(halves, midpoints, right=True).to(torch.uint8), first


class Uniform:
    """The integers ``low … high``."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.values = torch.arange(low, high + 1, dtype=torch.float32)
        self.bins = _bins(self.values)

    def nearest(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return t.round_().clamp_(self.low, self.high)

    def index(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return self.nearest(t).sub_(self.low).to(torch.uint8)


class Table:
    """Any increasing integers.

    Their midpoints are multiples of ½, so ⌊2t⌋ determines the level: a look-up is nine times faster
    than bisecting the midpoints.
    """

    def __init__(self, *values: int) -> None:
        self.values = torch.tensor(values, dtype=torch.float32)
        self.bins = _bins(self.values)
        self._index, self.first = self.bins
        self.last = self.first + len(self._index) - 1
        self._nearest = self.values[self._index.long()]

    def nearest(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return torch.take(self._nearest.to(t.device), self._bin(t))

    def index(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return torch.take(self._index.to(t.device), self._bin(t))

    def _bin(self, t: Tensor) -> Tensor:
        return t.mul_(2).floor_().clamp_(self.first, self.last).sub_(self.first).long()
