"""K-quants: 256 columns in sub-blocks of 16 or 32, whose scales are small integers times fp16.

Value = (d·scale)·level − dmin·min, with one integer `scales` (and for some formats one `mins`) per
sub-block. Layouts: llama.cpp, ``ggml-common.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats import _exact
from edgepack.formats._affine import NO_OFFSET, Blocks, sub_scales
from edgepack.formats._bits import Layout
from edgepack.formats._k_search import Problem, State, stack
from edgepack.formats._levels import Levels, Uniform
from edgepack.formats._scalar import Scalar, level_probes, range_probes
from edgepack.formats._search import normalize, one_scale, scale_min


class KQuant(Scalar, Blocks):
    """A K-quant; subclasses search for the float scales of a sub-block."""

    block_size = 256
    starts: int
    """Values of d tried, and candidates per block."""
    sub_keep = 5
    """Float scales kept per sub-block."""

    def __init__(
        self, name: str, ggml_type: int, levels: Levels, layout: Layout, unit: int, scales: Uniform
    ) -> None:
        self.name = name
        self.ggml_type = ggml_type
        self.code_levels = levels
        self.layout = layout
        self.type_size = layout.size
        self.unit = unit
        self.subs = self.block_size // unit
        self.scale_range = scales

    def _units(self, factor: Tensor, integers: Tensor, columns: slice) -> Tensor:
        return sub_scales(factor, integers, self.block_size, self.unit, columns)

    def _sub_blocks(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, 256]`` as ``[n·subs, unit]``, weights normalised per sub-block."""
        return x.reshape(-1, self.unit), normalize(w.reshape(-1, self.unit))

    def _per_block(self, found: Tensor) -> Tensor:
        """``[n·subs, M]`` as ``[n, M, subs]``."""
        return torch.unflatten(found, 0, (-1, self.subs)).transpose(1, 2)

    def _problem(self, x: Tensor, w: Tensor, mins: Uniform) -> Problem:
        x, w = (torch.unflatten(t, 1, (self.subs, self.unit)) for t in (x, w))
        return Problem(x, w, self.code_levels, self.scale_range, mins)


class KScale(KQuant):
    """Q3_K and Q6_K: signed integer scales, no mins."""

    starts = 4
    sub_probes: Tensor

    def __init__(
        self, name: str, ggml_type: int, levels: Levels, layout: Layout, unit: int, scales: Uniform
    ) -> None:
        super().__init__(name, ggml_type, levels, layout, unit, scales)
        self.sub_probes = level_probes(levels.values, torch.linspace(0.8, 1.3, 13), group=3)

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Scalar`."""
        scale = self._units(grid["d"], grid["scales"], columns)
        return scale, NO_OFFSET.to(scale.device).expand_as(scale)

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        sub_x, sub_w = self._sub_blocks(x, w)
        _, s = one_scale(sub_x, sub_w, self.code_levels, self.sub_probes, self.sub_keep, fp16=False)
        s = self._per_block(s)
        problem = self._problem(x, w, Uniform(0, 0))
        best = stack(problem.solve(s, torch.zeros_like(s), self.starts))
        return {"d": best.d.to(torch.float16), "scales": best.scales.to(torch.int8)}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        low, high = self.scale_range.low, self.scale_range.high
        integers = _exact.Integers(low, 1, high - low + 1)
        found, d, index = _exact.two_scales(near, self.code_levels, self.unit, integers)
        return {"d": d.to(torch.float16), "scales": (index + low).to(torch.int8)}, found


class KScaleMin(KQuant):
    """Q2_K, Q4_K and Q5_K: unsigned integer scales and mins.

    The mins shift values down only, so x and −x are both fitted; for −x, d and dmin are negated.
    """

    starts = 2

    def __init__(
        self, name: str, ggml_type: int, top: int, layout: Layout, unit: int, scales: Uniform
    ) -> None:
        super().__init__(name, ggml_type, Uniform(0, top), layout, unit, scales)
        self.top = top
        self.sub_probes = range_probes(top)

    def affine(self, grid: Grid, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See `Scalar`."""
        return (
            self._units(grid["d"], grid["scales"], columns),
            -self._units(grid["dmin"], grid["mins"], columns),
        )

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        mirrored = [state.mirror() for state in self._one_way(-x, w)]
        best = stack([*self._one_way(x, w), *mirrored])
        factors = {"d": best.d.to(torch.float16), "dmin": best.dmin.to(torch.float16)}
        return factors | {"scales": best.scales.to(torch.uint8), "mins": best.mins.to(torch.uint8)}

    def recover(self, near: _exact.Near) -> tuple[Grid, Tensor]:
        """See `Format`."""
        found, grid = _exact.two_scales_and_mins(near, self.top, self.unit, self.scale_range.high)
        factors = {name: grid[name].to(torch.float16) for name in ("d", "dmin")}
        return factors | {name: grid[name].to(torch.uint8) for name in ("scales", "mins")}, found

    def _one_way(self, x: Tensor, w: Tensor) -> list[State]:
        sub_x, sub_w = self._sub_blocks(x, w)
        _, s, m = scale_min(
            sub_x, sub_w, self.top, self.sub_probes, self.sub_keep, fp16=False, negative=True
        )
        problem = self._problem(x, w, self.scale_range)
        return problem.solve(self._per_block(s), self._per_block(-m), self.starts)
