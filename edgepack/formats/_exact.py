"""Values that already lie on a format's grid: the grid and the codes that give them back.

A checkpoint may hold d·q (+ m) as floats: of a model trained for a type (QAT), or of a file that
somebody dequantized. The floats are those products rounded to the checkpoint's type, so each float
stands for all numbers that round to it. A weight is on a grid if scales exist, in the precision in
which the format stores them, with which the runtime's values round to the stored floats, all of
them. Then these codes are the weight, without an error.

Scales are found block by block from the largest element and the levels that it may stand on
(`_exact_kernels`, `_exact_k_kernels`). A few blocks are looked at first: weights on no grid, nearly
all, are told by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.formats import _exact_k_kernels as k_kernels
from edgepack.formats import _exact_kernels as kernels
from edgepack.formats import _exact_min_kernels as min_kernels
from edgepack.formats._levels import Levels
from edgepack.formats.base import Format, GgmlFormat

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Storage types of a checkpoint (`WeightSpec.dtype`) whose values can lie on a grid."""
CHUNK = 1 << 19
"""Elements that are looked at together: with their bounds they take 20 bytes each."""
SAMPLES = (2, 24)
"""Numbers of blocks, evenly spread, that are looked at before all others."""
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Near:
    """Values x ``[n, size]`` in float32, and the bounds in float64 between which numbers round to
    them: lo ≤ v ≤ hi exactly if v, a float32, becomes x in the checkpoint's type."""

    x: Tensor
    lo: Tensor
    hi: Tensor

    @staticmethod
    def of(x: Tensor, dtype: torch.dtype) -> Near:
        """x was stored as `dtype`."""
        stored = x.to(dtype)
        below, above = (_middle(stored, step) for step in (-1, 1))
        # A number half-way goes to the neighbour whose last bit is 0.
        odd = (stored.view(BITS[dtype]) & 1).bool()
        inner = x.double()
        below = torch.where(odd, torch.nextafter(below, inner), below)
        above = torch.where(odd, torch.nextafter(above, inner), above)
        return Near(x, below, above)

    def __neg__(self) -> Near:
        return Near(-self.x, -self.hi, -self.lo)

    def __getitem__(self, rows: Tensor) -> Near:
        return Near(self.x[rows], self.lo[rows], self.hi[rows])

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """x, lo and hi for a kernel."""
        return tuple(t.contiguous().numpy() for t in (self.x, self.lo, self.hi))


def _middle(stored: Tensor, step: int) -> Tensor:
    """Half-way to the next number of that type, upwards or downwards, in float64; beyond the
    largest, infinity."""
    integer = BITS[stored.dtype]
    smallest = torch.iinfo(integer).min
    bits = stored.view(integer).to(torch.int64)
    order = torch.where(bits < 0, smallest - bits, bits) + step  # -0 and 0 are one number
    bits = torch.where(order < 0, smallest - order, order).to(integer)
    neighbour = bits.view(stored.dtype).double()
    middle: Tensor = (stored.double() + neighbour) / 2
    return torch.where(neighbour.isfinite(), middle, step * torch.inf)


@cache
def halves() -> NDArray[np.float32]:
    """All finite float16 numbers, sorted, one zero among them."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.unique(bits[np.isfinite(bits)])


@cache
def positive_halves() -> NDArray[np.float32]:
    """Those above zero."""
    found: NDArray[np.float32] = halves()[halves() > 0].copy()
    return found


def one_scale(
    near: Near,
    levels: Levels,
    scales: NDArray[np.float32],
    *,
    signed: bool = True,
    span: float = np.inf,
) -> tuple[Tensor, Tensor]:
    """(found, d) ``[n]`` of blocks x = d·level. |d| is one of `scales`; levels in use reach over at
    most `span`, 0 included."""
    found, d = np.zeros(len(near.x), np.bool_), np.zeros(len(near.x), np.float32)
    kernels.one_scale(*near.arrays(), *_tables(levels), scales, signed, span, found, d)
    return torch.from_numpy(found), torch.from_numpy(d)


def _tables(levels: Levels) -> tuple[Any, ...]:
    """Levels, the largest first; the table that finds the nearest; where it begins."""
    values = levels.values.numpy()
    bins, first = levels.bins
    table = levels.values[bins.long()].numpy()
    return values[np.argsort(-np.abs(values), kind="stable")], table, np.float64(first)


@dataclass(frozen=True)
class Integers:
    """The integers base + step·i, i from 0 to many − 1, that scale a sub-block."""

    base: int
    step: int
    many: int

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """All i, that of the largest integer first."""
        values = self.base + self.step * np.arange(self.many)
        return np.argsort(-np.abs(values), kind="stable")


def two_scales(
    near: Near, levels: Levels, unit: int, integers: Integers, factor: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """(found ``[n]``, d ``[n]``, i ``[n, subs]``) of blocks x = factor·d·integer·level, with one of
    the `integers` for every `unit` columns."""
    n, subs = len(near.x), near.x.shape[1] // unit
    found, d = np.zeros(n, np.bool_), np.zeros(n, np.float32)
    index = np.zeros((n, subs), np.int64)
    about = (float(integers.base), float(integers.step), integers.order, float(factor))
    k_kernels.scales(*near.arrays(), unit, *_tables(levels), *about, halves(), found, d, index)
    return torch.from_numpy(found), torch.from_numpy(d), torch.from_numpy(index)


def scale_offset(near: Near, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(found, d, m) ``[n]`` of blocks x = d·q + m, q from 0 to `top`; d may be negative."""
    found = torch.zeros(len(near.x), dtype=torch.bool)
    d, m = torch.zeros(len(near.x)), torch.zeros(len(near.x))
    for sign in (1, -1):
        (rest,) = torch.where(~found)
        if not len(rest):
            break
        part = near[rest] if sign > 0 else -near[rest]
        here = tuple(np.zeros(len(rest), kind) for kind in (np.bool_, np.float32, np.float32))
        kernels.scale_offset(*part.arrays(), np.float64(top), halves(), *here)
        ok, scale, offset = (torch.from_numpy(one) for one in here)
        found[rest], d[rest], m[rest] = ok, sign * scale, sign * offset
    return found, d, m


def two_scales_and_mins(
    near: Near, top: int, unit: int, most: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """found ``[n]``, and d, dmin ``[n]``, scales, mins ``[n, subs]`` of blocks
    x = d·scale·q − dmin·min, integers from 0 to `most`; d may be negative."""
    n, subs = len(near.x), near.x.shape[1] // unit
    found = torch.zeros(n, dtype=torch.bool)
    grid = {"d": torch.zeros(n), "dmin": torch.zeros(n)}
    grid |= {name: torch.zeros(n, subs, dtype=torch.int64) for name in ("scales", "mins")}
    for sign in (1, -1):
        (rest,) = torch.where(~found)
        if not len(rest):
            break
        part = near[rest] if sign > 0 else -near[rest]
        ok = np.zeros(len(rest), np.bool_)
        here = {name: values[rest].numpy() for name, values in grid.items()}
        min_kernels.scales_mins(*part.arrays(), unit, top, most, halves(), ok, *here.values())
        found[rest] = torch.from_numpy(ok)
        for name, values in here.items():
            grid[name][rest] = torch.from_numpy(values) * (sign if name in ("d", "dmin") else 1)
    return found, grid


def recover(W: Tensor, dtype: torch.dtype, fmt: Format) -> QuantizedTensor | None:
    """W ``[out, in]`` (float32, every value one of `dtype`) as codes of `fmt` whose values round to
    W in `dtype`; None if W does not lie on such a grid. Zeros may lose their sign."""
    if W.dim() != 2 or not W.numel() or not fmt.fits(W.shape[1]):
        return None
    size = fmt.block_size if fmt.block_size > 1 else W.shape[1]
    blocks = W.reshape(-1, size)
    for count in SAMPLES:
        if _grid(blocks[:: -(-len(blocks) // count)], dtype, fmt) is None:
            return None
    parts = list(_parts(W, dtype, fmt, size))
    if parts[-1] is None:
        return None
    kept = [part for part in parts if part is not None]
    grid = {k: torch.cat([part.grid[k] for part in kept]) for k in kept[0].grid}
    return QuantizedTensor(fmt.name, torch.cat([part.codes for part in kept]), grid)


def holds(W: Tensor, dtype: torch.dtype, fmt: Format) -> bool:
    """Whether W lies on a grid of `fmt`."""
    return recover(W, dtype, fmt) is not None


def _parts(
    W: Tensor, dtype: torch.dtype, fmt: Format, size: int
) -> Iterator[QuantizedTensor | None]:
    """Some rows of W after the other; None, and the end, at the first that lie on no grid."""
    for rows in torch.split(W, max(1, CHUNK // W.shape[1])):
        grid = _grid(rows.reshape(-1, size), dtype, fmt)
        if grid is None:
            yield None
            return
        grid = {k: torch.unflatten(v, 0, (len(rows), -1)) for k, v in grid.items()}
        found = QuantizedTensor(fmt.name, fmt.encode(rows, grid), grid)
        if isinstance(fmt, GgmlFormat):  # what the file will say has the last word
            found = fmt.parse(fmt.pack(found))
        if not torch.equal(found.dequantize().to(dtype), rows.to(dtype)):
            yield None
            return
        yield found


def _grid(blocks: Tensor, dtype: torch.dtype, fmt: Format) -> Grid | None:
    """The grids of blocks ``[n, size]``; None unless all of them have one."""
    grid, found = fmt.recover(Near.of(blocks, dtype))
    return grid if bool(found.all()) else None
