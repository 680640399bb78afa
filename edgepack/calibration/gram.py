"""Σ w x xᵀ in float64, of which only the upper triangle is kept, in panels of rows.

Half the memory, half the products, and no temporary as large as the matrix: a 28672 × 28672 sum
takes 3.3 GB here and 6.6 GB when it is whole. The size of a panel is a constant, because the
rounding of products may depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.accelerator import precise

PANEL = 256
"""Rows of a panel."""


@dataclass
class Gram:
    """A symmetric sum ``[n, n]``. Panel k has the rows from k·`PANEL` on, and of them the columns
    from the diagonal on."""

    panels: list[Tensor]

    @classmethod
    def zero(cls, n: int, device: torch.device | None = None) -> Gram:
        """Nothing added yet. On the CPU if the device of what will be has no float64."""
        rows = ((start, min(PANEL, n - start)) for start in range(0, n, PANEL))
        shapes = [(count, n - start) for start, count in rows]
        place = None if device is None else precise(device)
        return cls([torch.zeros(s, dtype=torch.float64, device=place) for s in shapes])

    @classmethod
    def identity(cls, n: int) -> Gram:
        """Ones on the diagonal."""
        gram = cls.zero(n)
        for panel in gram.panels:
            panel.diagonal().fill_(1.0)
        return gram

    @property
    def n(self) -> int:
        """Rows of the whole matrix."""
        return self.panels[0].shape[1]

    def add(self, k: int, x: Tensor, weight: Tensor | None) -> None:
        """Add Σ w x xᵀ of inputs x ``[tokens, n]`` with weights ``[tokens]`` to panel k. Different
        panels may be added to side by side."""
        left = x[:, k * PANEL : (k + 1) * PANEL]
        if weight is not None:
            left = left * weight[:, None]
        panel = self.panels[k]
        panel.add_((left.T @ x[:, k * PANEL :]).to(panel.device))

    def merge(self, other: Gram) -> None:
        """Add another sum, in place."""
        for panel, more in zip(self.panels, other.panels, strict=True):
            panel.add_(more)

    def scale(self, factor: float) -> None:
        """Multiply, in place."""
        for panel in self.panels:
            panel.mul_(factor)

    def copy(self) -> Gram:
        """The same values in other memory."""
        return Gram([panel.clone() for panel in self.panels])

    def diagonal(self) -> Tensor:
        """``[n]``."""
        return torch.cat([panel.diagonal() for panel in self.panels])

    def packed(self, *divisors: float) -> Iterator[Tensor]:
        """The upper triangle divided by numbers, row after row, as runs of float32: the values of
        `core.linalg.pack_symmetric`."""
        for panel in self.panels:
            rows = panel.cpu()
            for divisor in divisors:
                rows = rows / divisor
            yield torch.cat([row[i:].float() for i, row in enumerate(rows)])

    def dense(self) -> Tensor:
        """The whole matrix, float64 ``[n, n]``."""
        H = torch.empty(self.n, self.n, dtype=torch.float64)
        for k, panel in enumerate(self.panels):
            rows = slice(k * PANEL, k * PANEL + len(panel))
            upper = panel.cpu()
            H[rows, rows.start :] = upper
            H[rows.start :, rows] = upper.T
            square = upper[:, : len(upper)].triu()
            H[rows, rows] = square + square.triu(1).T
        return H


def gram_bytes(n: int) -> int:
    """Bytes of a sum ``[n, n]``."""
    return sum(8 * min(PANEL, n - start) * (n - start) for start in range(0, n, PANEL))
