"""Vector codebooks (IQ2, IQ3): 8 or 4 columns are coded together as a point of a grid, and signs.

Value = d·c·(1 + 2·scale)·(±magnitude), with one 4-bit scale per sub-block. The grid lists which
magnitudes may occur together. Some formats store seven of eight signs; the number of negative ones
is then even. Codes still index the signed magnitudes column by column, so that only the choice of
codes differs from other formats. Layouts: llama.cpp, ``ggml-common.h``; grids: package ``gguf``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gguf import quants
from torch import Tensor

from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.formats import _codebook_kernels as kernels
from edgepack.formats import _exact
from edgepack.formats._affine import NO_OFFSET, Affine, Blocks, sub_scales
from edgepack.formats._bits import Layout, Stored
from edgepack.formats._levels import Table
from edgepack.formats._limits import check_finite

SIGNS = 8
"""Columns whose signs share one byte, or seven bits of one."""

SCALES = 16
"""Values of a sub-block's scale."""

SPANS = torch.unflatten(torch.linspace(0.9, 2.0, 36), 0, (-1, 3))
"""Values of d that are tried, as multiples of the d that puts the largest scale on its last one."""

WIDE = Stored(torch.int16, file=torch.int16)
"""Storage of the index into a grid with more than 256 points."""


@dataclass(frozen=True)
class Points:
    """The points of a grid, and the index that packing looks them up in."""

    values: Tensor
    """Magnitudes, float32 ``[points, tuple]``."""

    @staticmethod
    def from_gguf(name: str) -> Points:
        """The grid of that class of ``gguf.quants``."""
        kind: Any = getattr(quants, name)
        kind.init_grid()
        return Points(torch.from_numpy(kind.grid.reshape(kind.grid_shape).astype(np.float32)))

    @cached_property
    def magnitudes(self) -> Tensor:
        """The distinct magnitudes, increasing."""
        found: Tensor = torch.unique(self.values)
        return found

    @cached_property
    def digits(self) -> Tensor:
        """Each magnitude's place among `magnitudes`, uint8 ``[points, tuple]``."""
        return torch.bucketize(self.values, self.magnitudes).to(torch.uint8)

    @cached_property
    def _index(self) -> Tensor:
        index = torch.zeros(len(self.magnitudes) ** self.values.shape[1], dtype=torch.int16)
        index[self._number(self.digits)] = torch.arange(len(self.values), dtype=torch.int16)
        return index

    def _number(self, digits: Tensor) -> Tensor:
        places = len(self.magnitudes) ** torch.arange(digits.shape[-1])
        return (digits.to(torch.int64) * places).sum(-1)

    def index(self, digits: Tensor) -> Tensor:
        """Index of the point with these digits ``[…, tuple]``; int16."""
        return self._index[self._number(digits)]


class Codebook(Affine, Blocks):
    """See the module. `even_signs`: in every eight columns the number of minus signs is even."""

    block_size = 256

    def __init__(
        self,
        name: str,
        ggml_type: int,
        points: Points,
        layout: Layout,
        unit: int,
        factor: float,
        even_signs: bool,
    ) -> None:
        self.name = name
        self.ggml_type = ggml_type
        self.points = points
        half = [int(v) for v in points.magnitudes]
        self.code_levels = Table(*(-v for v in reversed(half)), *half)
        self.layout = layout
        self.type_size = layout.size
        self.unit = unit
        self.factor = factor
        self.even_signs = even_signs
        self.group = SIGNS if even_signs else points.values.shape[1]
        size = float(points.values.square().mean().sqrt())
        self.probes = torch.linspace(0.7, 1.5, 9) / size

    @cached_property
    def book(self) -> kernels.Book:
        """The grid as the compiled search takes it."""
        values = self.points.values.T.contiguous().numpy()
        return kernels.Book(
            values, self.points.digits.numpy(), self.levels.numpy(), self.group, self.even_signs
        )

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Affine`."""
        d, odd = self.factor * grid["d"].to(torch.float32), 1 + 2 * grid["scales"]
        scale = sub_scales(d, odd, self.block_size, self.unit, columns)
        return scale, NO_OFFSET.to(scale.device).expand_as(scale)

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        n, subs = len(x), self.block_size // self.unit
        d = torch.empty(n, kernels.KEEP)
        scales = torch.empty(n, kernels.KEEP, subs, dtype=torch.uint8)
        arrays = (t.contiguous().numpy() for t in (x, w, self.probes, SPANS))
        found = (t.numpy() for t in (d, scales))
        kernels.propose(*arrays, self.book, self.unit, np.float32(self.factor), *found)
        return {"d": d.to(torch.float16), "scales": scales}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`; whether the magnitudes are points of the grid is seen when they are packed
        (`_exact.recover`)."""
        integers = _exact.Integers(1, 2, SCALES)
        found, d, index = _exact.two_scales(
            near, self.code_levels, self.unit, integers, self.factor
        )
        return {"d": d.to(torch.float16), "scales": index.to(torch.uint8)}, found

    def encode(
        self,
        x: Tensor,
        grid: Grid,
        columns: slice = slice(None),
        importance: Tensor | None = None,
    ) -> Tensor:
        """See `Format`; nearest in the metric of `importance`, as x or ``[width of columns]``."""
        scale, _ = self.affine(grid, columns)
        w = torch.ones(1) if importance is None else importance.to(x.dtype)
        codes = torch.empty(x.shape, dtype=torch.uint8)
        arrays = (t.contiguous().numpy() for t in (x, w.expand_as(x), scale[:, :: self.group]))
        kernels.encode(*arrays, self.book, codes.numpy())
        return codes

    def quantize(self, W: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """See `Format`; the importance also decides which point of the grid is nearest."""
        check_finite("the weight", W)
        check_finite("the importance of its columns", importance)
        w = torch.ones(W.shape[-1]) if importance is None else importance
        grid = self.fit(W, w)
        return QuantizedTensor(self.name, self.encode(W, grid, importance=w), grid)

    def pack(self, q: QuantizedTensor) -> Tensor:
        """See `Format`."""
        half = len(self.points.magnitudes)
        codes = torch.unflatten(q.codes.to(torch.int16), 1, (-1, self.block_size))
        negative = codes < half
        digits = torch.where(negative, half - 1 - codes, codes - half)
        index = self.points.index(torch.unflatten(digits, 2, (-1, self.points.values.shape[1])))
        bits = torch.unflatten(negative, 2, (-1, SIGNS))[..., : SIGNS - self.even_signs]
        signs = (bits << torch.arange(bits.shape[-1])).sum(-1).to(torch.uint8)
        return self.layout.pack({**q.grid, "index": index, "signs": signs}).flatten(1)

    def parse(self, data: Tensor) -> QuantizedTensor:
        """See `Format`."""
        values = self.layout.parse(torch.unflatten(data, 1, (-1, self.type_size)))
        digits = self.points.digits[values.pop("index").to(torch.int32)].flatten(1).to(torch.int16)
        bits = (values.pop("signs").unsqueeze(-1) >> torch.arange(SIGNS).to(torch.uint8)) & 1
        if self.even_signs:
            bits[..., -1] = bits[..., :-1].sum(-1) & 1
        half = len(self.points.magnitudes)
        codes = torch.where(bits.flatten(1) == 1, half - 1 - digits, half + digits)
        return QuantizedTensor(self.name, codes.to(torch.uint8), values)
