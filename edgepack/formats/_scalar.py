"""Formats whose values are scale·level + offset: every stock block type but the vector codebooks.

A sweep that quantizes column by column can therefore inline them: take `affine` once a column,
and ``scale * levels[code] + offset`` is the value, bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from edgepack.formats._base import Format
from edgepack.formats._bits import Layout
from edgepack.formats._levels import Levels, Uniform
from edgepack.formats._search import best_first, normalized, one_scale, reciprocal, scale_min
from edgepack.weights import Grid, QuantizedTensor

CHUNK = 1 << 17
"""Elements fitted at once: few enough that the search's temporaries stay in the cache."""

NO_OFFSET = torch.tensor(-0.0)
"""−0 and not 0: x + −0 is x for every x, so zeros keep the sign the runtime gives them."""


class Scalar(Format):
    """A block of codes on ``scale·levels[code] + offset``, scale and offset shared by columns.

    Codes are uint8 ``[out, in]`` and index `levels` (so q8_0's are 0 … 255 for −128 … 127). Fields
    of a grid are ``[out, blocks, …]``.
    """

    code_levels: Levels
    layout: Layout
    unit: int
    """Columns that share scale and offset."""

    @property
    def levels(self) -> Tensor:
        """Sorted code values, float32 ``[codes]``."""
        return self.code_levels.values

    @property
    def uniform(self) -> bool:
        """Whether the nearest code is clamp(round(·)); otherwise bisect the levels' midpoints."""
        return isinstance(self.code_levels, Uniform)

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

        They differ in scale (and sign), for a sweep to try all on the errors it really makes.
        K takes the place of the blocks, so this is also the grid of a tensor ``[out, K·block]``.
        """
        w = importance.to(x.dtype).expand_as(x)
        return self._propose(x, normalized(w))

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

    def nearest(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Codes (uint8) nearest to x on scale·levels + offset, all of one shape.

        Where the scale is 0: the code of the level nearest 0.
        """
        return self.code_levels.index((x - offset) * reciprocal(scale))

    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        return self.nearest(x, *self.affine(grid, columns))

    def decode(self, codes: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        scale, offset = self.affine(grid, columns)
        return scale * self.levels.to(codes.device)[codes.to(torch.int32)] + offset

    def pack(self, q: QuantizedTensor) -> Tensor:
        """See `Format`."""
        codes = torch.unflatten(q.codes, 1, (-1, self.block_size))
        return self.layout.pack({**q.grid, "codes": codes}).flatten(1)

    def parse(self, data: Tensor) -> QuantizedTensor:
        """See `Format`."""
        values = self.layout.parse(torch.unflatten(data, 1, (-1, self.type_size)))
        codes = values.pop("codes").flatten(1)
        return QuantizedTensor(self.name, codes, values)


def spread(units: Tensor, size: int, start: int, stop: int) -> Tensor:
    """Columns start … stop of ``[out, units]`` repeated `size` times each (one unit: a view)."""
    return units.unsqueeze(-1).expand(-1, -1, size).flatten(1)[:, start:stop]


class BlockScalar(Scalar):
    """One fp16 scale `d`, and maybe one fp16 offset `m`, per block."""

    keep = 10
    """Candidates per block."""

    def __init__(
        self, name: str, ggml_type: int, levels: Levels, layout: Layout, size: int
    ) -> None:
        self.name = name
        self.ggml_type = ggml_type
        self.code_levels = levels
        self.layout = layout
        self.block_size = self.unit = size
        self.type_size = layout.size

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Scalar`."""
        scale = self._columns(grid["d"], columns)
        if "m" in grid:
            return scale, self._columns(grid["m"], columns)
        return scale, NO_OFFSET.to(scale.device).expand_as(scale)

    def _columns(self, field: Tensor, columns: slice) -> Tensor:
        size = self.block_size
        start, stop, _ = columns.indices(field.shape[1] * size)
        first = start // size
        blocks = field[:, first : -(-stop // size)].to(torch.float32)
        return spread(blocks, size, start - first * size, stop - first * size)


class OneScale(BlockScalar):
    """x ≈ d·level; d may be negative, which turns an asymmetric set of levels round."""

    def __init__(
        self,
        name: str,
        ggml_type: int,
        levels: Levels,
        layout: Layout,
        size: int,
        probes: Tensor,
    ) -> None:
        super().__init__(name, ggml_type, levels, layout, size)
        self.probes = probes

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        _, d = one_scale(x, w, self.code_levels, self.probes, self.keep)
        return {"d": d.to(torch.float16)}


class ScaleMin(BlockScalar):
    """x ≈ d·q + m with codes q from 0.

    Grids with m = 0 are tried too: a constant block has no range to divide, but may be d·q.
    """

    keep = 9
    bare_keep = 2

    def __init__(self, name: str, ggml_type: int, top: int, layout: Layout, size: int) -> None:
        super().__init__(name, ggml_type, Uniform(0, top), layout, size)
        self.top = top
        self.probes = range_probes(top)
        self.bare_probes = level_probes(self.levels, torch.tensor([1.1]), group=4)

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        fitted = scale_min(x, w, self.top, self.probes, self.keep)
        error, d = one_scale(x, w, self.code_levels, self.bare_probes, self.bare_keep)
        both = zip(fitted, (error, d, torch.zeros_like(d)), strict=True)
        _, d, m = best_first(*(torch.cat(fields, 1) for fields in both))
        return {"d": d.to(torch.float16), "m": m.to(torch.float16)}


def level_probes(levels: Tensor, clips: Tensor, group: int) -> Tensor:
    """Probes ``[groups, group]`` for `one_scale`: every level, and the two outermost times `clips`.

    The first find x that lies on a grid, the second shrink the grid inside the range of x (> 1
    times the outermost level: the largest |x| is clipped).
    """
    probes = torch.cat([levels[levels != 0], levels[0] * clips, levels[-1] * clips])
    return _grouped(torch.unique(probes), group)


def range_probes(top: int, group: int = 4) -> Tensor:
    """Probes ``[groups, group, 2]`` for `scale_min`: all whole numbers of steps up to `top`, and
    ranges around `top` steps that cut off the low end, the high end, or half of both."""
    whole = [(float(r), 0.0) for r in range(1, top)]
    wide = torch.linspace(max(1.0, 0.8 * top), 1.35 * top, 12)
    near = torch.linspace(top - 1.0, top + 1.0, 9)
    spans = torch.cat([wide, near]).sort().values.tolist()
    around = [(r, a) for r in spans for a in (0.0, 0.5, 1.0)]
    return _grouped(torch.tensor(whole + around), group)


def _grouped(probes: Tensor, group: int) -> Tensor:
    """Neighbours in groups, the last one filled up with copies of the last probe."""
    missing = -len(probes) % group
    return torch.unflatten(torch.cat([probes, *[probes[-1:]] * missing]), 0, (-1, group))
