"""Uniform grids with an integer zero point per block, as ONNX's MatMulNBits takes them.

Value = d·(code − z). d is fp16 and may be negative, which mirrors the range: zero points below the
middle need not be tried. (MatMulNBits' fast kernels take integer zero points only.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._affine import by_column
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import Scalar, level_probes
from edgepack.formats._search import best_first, one_scale, reciprocal

ZERO_BITS = {2: 0, 3: 4, 4: 4}
"""Bits of a code → bits of its zero point. With 2 bits the zero point is always the middle, and is
not stored; the runtime computes 3-bit codes as 4-bit ones."""
LOPSIDED = (0.6, 0.67, 0.73, 0.8, 1.0)
"""Positions of zero in the range that are tried, besides the middle."""


class Integer(Scalar):
    """`bits` a code, one scale and zero point for `group_size` columns: ``int4_g32``, …"""

    keep = 4
    """Candidates per block and zero point."""

    def __init__(self, bits: int, group_size: int) -> None:
        self.name = f"int{bits}_g{group_size}"
        self.bits, self.zero_bits = bits, ZERO_BITS[bits]
        self.block_size = self.unit = group_size
        top = 2**bits - 1
        self.middle = 2 ** (bits - 1)
        self.code_levels = Uniform(0, top)
        zeros = {self.middle, *(round(top * share) for share in LOPSIDED if self.zero_bits)}
        self.ranges = [Uniform(-z, top - z) for z in sorted(zeros)]
        self.clips = torch.linspace(0.7, 1.3 if bits > 2 else 3.0, 25)

    @property
    def bits_per_weight(self) -> float:
        """See `Format`."""
        return self.bits + (16 + self.zero_bits) / self.block_size

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """See `Format`; a row's zero points are padded to a whole byte."""
        rows, columns = shape
        blocks = columns // self.block_size
        return rows * (columns * self.bits // 8 + 2 * blocks + -(-blocks * self.zero_bits // 8))

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Scalar`; d·code − d·z is exact in float32, and so equals d·(code − z)."""
        d = grid["d"].float()
        fields = (d, -d * grid.get("z", self.middle))
        scale, offset = (by_column(field, self.block_size, columns) for field in fields)
        return scale, offset

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        found = []
        for levels in self.ranges:
            probes = level_probes(levels.values, self.clips, group=2)
            error, d = one_scale(x, w, levels, probes, self.keep if self.zero_bits else 10)
            found.append((error, d, torch.full_like(d, -levels.low)))
        _, d, z = best_first(*(torch.cat(fields, 1) for fields in zip(*found, strict=True)))
        best = slice(0, 10)
        grid = {"d": d[:, best].to(torch.float16)}
        return grid | ({"z": z[:, best].to(torch.uint8)} if self.zero_bits else {})

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`; the zero point is the lowest that has room for all codes in use."""
        top = len(self.code_levels.values) - 1
        if not self.zero_bits:
            levels = Uniform(-self.middle, top - self.middle)
            found, d = _exact.one_scale(near, levels, _exact.positive_halves())
            return {"d": d.to(torch.float16)}, found
        found, d = _exact.one_scale(
            near, Uniform(-top, top), _exact.positive_halves(), span=float(top)
        )
        lowest = (near.x * reciprocal(d)[:, None]).round().amin(1)
        z = (-lowest).clamp(0, top).to(torch.uint8)
        return {"d": d.to(torch.float16), "z": z}, found
