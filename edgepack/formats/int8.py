"""int8: 8 bits, one scale for a whole row, for ONNX's MatMulInteger: the fast way in browsers."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._levels import Uniform
from edgepack.formats._search import half, reciprocal
from edgepack.formats.base import Format

TOP, ZERO = 127, 128
ROWS = 4096
"""Rows rounded at once, so that no second copy of an embedding in float32 is in memory."""


class RowInt8(Format):
    """Value = d·(code − 128), d ``[out, 1]`` fp16, so that the largest |x| of a row is code 1 or
    255. Rounded to nearest: at 8 bits, error feedback gains almost nothing."""

    name = "int8"
    block_size = 1

    @property
    def bits_per_weight(self) -> float:
        """See `Format`; the scale of a row, 16 bits, is not counted."""
        return 8.0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """See `Format`."""
        rows, columns = shape
        return rows * (columns + 2)

    def fit(self, x: Tensor, importance: Tensor) -> Grid:
        """See `Format`."""
        most = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
        return {"d": half(most / TOP).to(torch.float16)}

    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        inverse = reciprocal(grid["d"].float())
        parts = zip(torch.split(x, ROWS), torch.split(inverse, ROWS), strict=True)
        codes = [
            (rows * by).round_().clamp_(-TOP, TOP).add_(ZERO).to(torch.uint8) for rows, by in parts
        ]
        return torch.cat(codes)

    def decode(self, codes: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        return grid["d"].float() * (codes.float() - ZERO)

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`; a block is a row."""
        levels = Uniform(-TOP, TOP)
        found, d = _exact.one_scale(near, levels, _exact.positive_halves(), signed=False)
        return {"d": d.to(torch.float16)}, found


PLUGIN = RowInt8()
