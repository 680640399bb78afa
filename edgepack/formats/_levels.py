"""The code values of a scalar format, before scale and offset."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """Sorted code values; code i stands for ``values[i]``."""

    values: Tensor

    def nearest(self, t: Tensor) -> Tensor:
        """The level nearest to each t, as float32; may overwrite t."""

    def index(self, t: Tensor) -> Tensor:
        """Its code, uint8; may overwrite t."""


class Uniform:
    """The integers ``low … high``."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.values = torch.arange(low, high + 1, dtype=torch.float32)

    def nearest(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return t.round_().clamp_(self.low, self.high)

    def index(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return self.nearest(t).sub_(self.low).to(torch.uint8)


class Table:
    """Any increasing integers.

    Their midpoints are multiples of ½, so ⌊2t⌋ decides the level: looking that up is nine times
    faster than bisecting the midpoints.
    """

    def __init__(self, *values: int) -> None:
        self.values = torch.tensor(values, dtype=torch.float32)
        self.first, self.last = 2 * values[0], 2 * values[-1]
        halves = torch.arange(self.first, self.last + 1) / 2
        midpoints = (self.values[1:] + self.values[:-1]) / 2
        self._index = torch.bucketize(halves, midpoints, right=True).to(torch.uint8)
        self._nearest = self.values[self._index.long()]

    def nearest(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return torch.take(self._nearest.to(t.device), self._bin(t))

    def index(self, t: Tensor) -> Tensor:
        """See `Levels`."""
        return torch.take(self._index.to(t.device), self._bin(t))

    def _bin(self, t: Tensor) -> Tensor:
        return t.mul_(2).floor_().clamp_(self.first, self.last).sub_(self.first).long()
