"""Formats whose values are scale·level + offset: every stock block type.

A sweep that quantizes column by column can therefore inline them: it calls `affine` once a column,
and ``scale * levels[code] + offset`` is the value, bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.formats._bits import Layout
from edgepack.formats._levels import Levels
from edgepack.formats._search import normalize
from edgepack.formats.base import Format, GgmlFormat

CHUNK = 1 << 17
"""Elements fitted at once: few enough that the search's temporaries fit the processor's cache."""

NO_OFFSET = torch.tensor(-0.0)
"""−0, because x + −0 is x for every x: zeros keep the sign that the runtime gives them."""


class Affine(Format):
    """A block of codes on ``scale·levels[code] + offset``, scale and offset shared by columns.

    Codes are uint8 ``[out, in]`` and index `levels` (so q8_0's are 0 … 255 for −128 … 127). Fields
    of a grid are ``[out, blocks, …]``.
    """

    code_levels: Levels
    unit: int
    """Columns that share scale and offset."""

    @property
    def levels(self) -> Tensor:
        """Sorted code values, float32 ``[codes]``."""
        return self.code_levels.values

    @abstractmethod
    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(scale, offset), float32 ``[out, width of columns]``; possibly views that share memory.

        The scale may be 0 or negative.
        """

    @abstractmethod
    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        """Grids of single blocks x, w ``[n, block_size]``: fields ``[n, K, …]``, the best first."""

    def candidates(self, x: Tensor, importance: Tensor) -> Grid:
        """K grids for one block x ``[out, block_size]``: fields ``[out, K, …]``, `fit`'s first.

        They differ in scale (and sign); a sweep compares them by the errors that each makes there.
        K is where the blocks usually are, so this is also the grid of a tensor ``[out, K·block]``.
        """
        w = importance.to(x.dtype).expand_as(x)
        return self._propose(x, normalize(w))

    def fit(self, x: Tensor, importance: Tensor) -> Grid:
        """See `Format`."""
        rows = max(1, CHUNK // x.shape[1])
        weights = importance.to(x.dtype).expand_as(x)
        chunks = []
        for part, w in zip(torch.split(x, rows), torch.split(weights, rows), strict=True):
            blocks = (t.reshape(-1, self.block_size) for t in (part, w))
            grids = self.candidates(*blocks)
            chunks.append(
                {k: torch.unflatten(v[:, 0], 0, (len(part), -1)) for k, v in grids.items()}
            )
        return {field: torch.cat([chunk[field] for chunk in chunks]) for field in chunks[0]}

    def decode(self, codes: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        scale, offset = self.affine(grid, columns)
        return scale * self.levels.to(codes.device)[codes.to(torch.int32)] + offset


class Blocks(GgmlFormat):
    """A block type whose bytes hold its fields and codes in the order of `layout`."""

    layout: Layout

    def pack(self, q: QuantizedTensor) -> Tensor:
        """See `GgmlFormat`."""
        codes = torch.unflatten(q.codes, 1, (-1, self.block_size))
        return self.layout.pack({**q.grid, "codes": codes}).flatten(1)

    def parse(self, data: Tensor) -> QuantizedTensor:
        """See `GgmlFormat`."""
        values = self.layout.parse(torch.unflatten(data, 1, (-1, self.type_size)))
        codes = values.pop("codes").flatten(1)
        return QuantizedTensor(self.name, codes, values)


def spread(units: Tensor, size: int, start: int, stop: int) -> Tensor:
    """Columns start … stop of ``[out, units]`` repeated `size` times each (one unit: a view)."""
    return units.unsqueeze(-1).expand(-1, -1, size).flatten(1)[:, start:stop]


def by_column(blocks: Tensor, size: int, columns: slice) -> Tensor:
    """``[out, blocks]`` as ``[out, width of columns]``, for blocks of `size` columns."""
    start, stop, _ = columns.indices(blocks.shape[1] * size)
    first = start // size
    touched = blocks[:, first : -(-stop // size)]
    return spread(touched, size, start - first * size, stop - first * size)


def sub_scales(d: Tensor, integers: Tensor, block_size: int, unit: int, columns: slice) -> Tensor:
    """d ``[out, blocks]`` times integers ``[out, blocks, units]``, float32 per column; only the
    blocks that `columns` touch."""
    start, stop, _ = columns.indices(d.shape[1] * block_size)
    first, last = start // block_size, -(-stop // block_size)
    units = d[:, first:last, None].to(torch.float32) * integers[:, first:last]
    start, stop = start - first * block_size, stop - first * block_size
    from_unit, to_unit = start // unit, -(-stop // unit)
    units = units.flatten(1)[:, from_unit:to_unit]
    return spread(units, unit, start - from_unit * unit, stop - from_unit * unit)
