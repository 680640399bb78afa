"""Formats whose codes are chosen column by column: all stock types but the vector codebooks."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._affine import NO_OFFSET, Affine, Blocks, by_column
from edgepack.formats._bits import Layout
from edgepack.formats._levels import Levels, Uniform
from edgepack.formats._limits import FP16_MAX
from edgepack.formats._search import best_first, one_scale, reciprocal, scale_min


class Scalar(Affine):
    """Each column takes the code nearest to it."""

    @property
    def uniform(self) -> bool:
        """Whether the nearest code is clamp(round(·)); otherwise the levels' midpoints decide."""
        return isinstance(self.code_levels, Uniform)

    def nearest(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Codes (uint8) nearest to x on scale·levels + offset, all of one shape.

        Where the scale is 0: the code of the level nearest 0.
        """
        return self.code_levels.index((x - offset) * reciprocal(scale))

    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        return self.nearest(x, *self.affine(grid, columns))


class BlockScalar(Scalar, Blocks):
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
        scale = by_column(grid["d"].float(), self.block_size, columns)
        if "m" in grid:
            return scale, by_column(grid["m"].float(), self.block_size, columns)
        return scale, NO_OFFSET.to(scale.device).expand_as(scale)

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        found, d = _exact.one_scale(near, self.code_levels, _exact.positive_halves())
        return {"d": d.to(torch.float16)}, found


class OneScale(BlockScalar):
    """x ≈ d·level; d may be negative, which mirrors an asymmetric set of levels."""

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
        self.largest = FP16_MAX * float(levels.values.abs().max())

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        _, d = one_scale(x, w, self.code_levels, self.probes, self.keep)
        return {"d": d.to(torch.float16)}


class ScaleMin(BlockScalar):
    """x ≈ d·q + m with codes q from 0.

    Grids with m = 0 are tried too: a constant block has no range to divide, but d·q may hold it.
    """

    keep = 9
    bare_keep = 2

    def __init__(self, name: str, ggml_type: int, top: int, layout: Layout, size: int) -> None:
        super().__init__(name, ggml_type, Uniform(0, top), layout, size)
        self.top = top
        self.largest = FP16_MAX * (top + 1)
        self.probes = range_probes(top)
        self.bare_probes = level_probes(self.levels, torch.tensor([1.1]), group=4)

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        fitted = scale_min(x, w, self.top, self.probes, self.keep)
        error, d = one_scale(x, w, self.code_levels, self.bare_probes, self.bare_keep)
        both = zip(fitted, (error, d, torch.zeros_like(d)), strict=True)
        _, d, m = best_first(*(torch.cat(fields, 1) for fields in both))
        return {"d": d.to(torch.float16), "m": m.to(torch.float16)}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        found, d, m = _exact.scale_offset(near, self.top)
        return {"d": d.to(torch.float16), "m": m.to(torch.float16)}, found


def level_probes(levels: Tensor, clips: Tensor, group: int) -> Tensor:
    """Probes ``[groups, group]`` for `one_scale`: every level, and the two outermost times `clips`.

    The levels find an x that lies on a grid. The clips shrink the grid inside the range of x (above
    1 times the outermost level, the largest |x| is clipped).
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
    """Neighbouring probes in groups; copies of the last probe fill up the last group."""
    missing = -len(probes) % group
    return torch.unflatten(torch.cat([probes, *[probes[-1:]] * missing]), 0, (-1, group))
