"""MXFP4: 32 columns, 2^e·(the 15 values of a 4-bit float, doubled), 4.25 bits.

The scale has no mantissa (Open Compute Project, "Microscaling Formats (MX) v1.0", E8M0 and E2M1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._bits import ByValue, Layout, Plane, Values
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Table
from edgepack.formats._scalar import BlockScalar
from edgepack.formats._search import best_first, dot, reciprocal

VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Values of the sixteen codes in a file: sign and magnitude, so that 0 occurs twice."""

LEVELS = Table(*sorted(set(VALUES)))

POWERS = torch.tensor([2.0 ** (e - 128) for e in range(256)])
"""Value of the byte e: 2^(e − 127), halved because the levels are doubled."""


@dataclass(frozen=True)
class Exponent:
    """A power of two, stored as its exponent and held in memory as float32."""

    name: str
    size: int = 1

    def write(self, values: Values) -> Tensor:
        """See `Part`."""
        return _byte(values[self.name]).to(torch.uint8).unsqueeze(-1)

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """See `Part`."""
        return {self.name: POWERS[data.squeeze(-1).to(torch.int32)]}


def _byte(scale: Tensor) -> Tensor:
    """The e of the largest power of two that is not above the scale."""
    return (torch.frexp(scale).exponent + 127).clamp(0, 255)


class PowerScale(BlockScalar):
    """x ≈ 2^e·level; tries every e that puts the largest |x| on a level or just above the last."""

    largest = 1e15  # beyond it, sums of squares overflow float32

    steps = torch.tensor([3, 4, 2, 1, 0])
    """⌊log2(largest |x| / d)⌋ of each candidate. The last level is 12, hence 3; the smaller steps
    are for blocks that lie on a grid but use its inner levels only."""

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        peak = torch.where(w > 0, x, 0.0).abs().amax(1, keepdim=True)
        d = POWERS[(_byte(peak) - self.steps).clamp_min(0)]
        level = self.code_levels.nearest(x[:, None] * reciprocal(d)[..., None])
        miss = d[..., None] * level - x[:, None]
        return {"d": best_first(dot(w[:, None] * miss, miss), d)[1]}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        found, d = _exact.one_scale(near, self.code_levels, POWERS.numpy(), signed=False)
        return {"d": d}, found


PLUGIN = PowerScale(
    "mxfp4",
    GGMLQuantizationType.MXFP4,
    LEVELS,
    Layout((Exponent("d"), Plane(("codes",), 32, bits=4, run=16)), {"codes": ByValue(VALUES)}),
    size=32,
)
