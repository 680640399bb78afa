"""NVFP4: 4 × 16 columns, scale·(the 15 values of a 4-bit float, doubled), 4.5 bits.

The scale of 16 columns is a float of 8 bits without a sign (E4M3), from 2⁻⁹ to 448, halved because
the levels are doubled. NVIDIA's files add a float32 per tensor, which ggml keeps in a tensor of its
own; without it, scales of ordinary weights are in the lower, coarser part of that range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._affine import NO_OFFSET, Blocks, by_column
from edgepack.formats._bits import ByValue, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._scalar import Scalar
from edgepack.formats._search import best_first, dot, reciprocal
from edgepack.formats.mxfp4 import LEVELS, VALUES

NAN, LAST = 0x7F, 0x7E


def _value(byte: int) -> float:
    """As ``ggml_ue4m3_to_fp32`` reads it; bit 7 is not looked at, but that 127 alone is 0."""
    if byte in (0, NAN):
        return 0.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 0:
        return mantissa * 2.0**-10
    return (8 + mantissa) * 2.0 ** (exponent - 11)


SCALES = torch.tensor([_value(byte) for byte in range(256)])
"""Value of each byte, float32; 0 to 126 are sorted."""
PROBES = torch.tensor([12.0, 12.7, 11.3, 13.5, 10.6, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0])
"""Levels that the largest |x| is put on: the last one and near it, and the inner ones for blocks
that use no others."""


class Nvfp4(Scalar, Blocks):
    """`d` holds the bytes of the scales, uint8 ``[out, blocks, 4]``."""

    name = "nvfp4"
    ggml_type = int(GGMLQuantizationType.NVFP4)
    code_levels = LEVELS
    block_size = 64
    unit = 16
    largest = float(SCALES[LAST]) * 12
    waits = "few programs read it, and without a scale per tensor it is coarse for small weights"
    layout = Layout(
        (Plane(("d",), 4, bits=8, run=4), Plane(("codes",), 64, bits=4, run=8)),
        {"codes": ByValue(VALUES)},
    )
    type_size = layout.size

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Scalar`."""
        d = SCALES.to(grid["d"].device)[grid["d"].flatten(1).to(torch.int32)]
        scale = by_column(d, self.unit, columns)
        return scale, NO_OFFSET.to(scale.device).expand_as(scale)

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        x, w = (t.reshape(-1, self.unit) for t in (x, w))
        peak = torch.where(w > 0, x, 0.0).abs().amax(1, keepdim=True)
        byte = _nearest(peak / PROBES)
        d = SCALES[byte.to(torch.int32)]
        level = self.code_levels.nearest(x[:, None] * reciprocal(d)[..., None])
        miss = d[..., None] * level - x[:, None]
        _, best = best_first(dot(w[:, None] * miss, miss), byte)
        subs = self.block_size // self.unit
        return {"d": torch.unflatten(best, 0, (-1, subs)).transpose(1, 2)}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        parts = (t.reshape(-1, self.unit) for t in (near.x, near.lo, near.hi))
        scales = SCALES[1 : LAST + 1].numpy()
        found, d = _exact.one_scale(_exact.Near(*parts), LEVELS, scales, signed=False)
        subs = self.block_size // self.unit
        return {"d": _nearest(d).reshape(-1, subs)}, found.reshape(-1, subs).all(1)


def _nearest(scale: Tensor) -> Tensor:
    """The byte of the nearest scale."""
    middle = (SCALES[:LAST] + SCALES[1 : LAST + 1]) / 2
    return torch.bucketize(scale, middle).to(torch.uint8)


PLUGIN = Nvfp4()
