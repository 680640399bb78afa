"""`_row_loops` as kernels of Triton: one program a row, which keeps its block in registers.

``TRITON_INTERPRET=1`` runs them on a CPU, which is how they are tested against `_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

WRITTEN = {"enable_fp_fusion": False}
"""Products and sums are rounded as they are written, as on the CPU."""


def sweep(
    x: Tensor,
    U: Tensor,
    scale: Tensor,
    offset: Tensor,
    unit: Tensor,
    lookup: tuple[Tensor, Tensor, float],
    out: Sequence[Tensor],
) -> None:
    """See `_row_loops.sweep`; tensors are contiguous, blocks have a power of two of columns."""
    rows, size = x.shape
    inputs = (x.contiguous(), U.contiguous(), U.diagonal().reciprocal().contiguous())
    (levels, bins, first), (_, units, K) = lookup, scale.shape
    given = (scale, offset, unit.int(), levels, bins, first, len(bins) - 1.0, *out, units, K)
    wide = triton.next_power_of_2(K)
    _sweep[(rows,)](*inputs, *given, SIZE=size, WIDE=wide, **WRITTEN)


def descend(
    gradient: Tensor,
    H: Tensor,
    scale: Tensor,
    offset: Tensor,
    lookup: tuple[Tensor, Tensor, float],
    out: Sequence[Tensor],
) -> None:
    """See `_row_loops.descend`."""
    levels, bins, first = lookup
    inputs = (gradient.contiguous(), H.contiguous(), scale, offset, levels, bins, first)
    rows, size = gradient.shape
    _descend[(rows,)](*inputs, len(bins) - 1.0, *out, SIZE=size, **WRITTEN)


@triton.jit  # type: ignore[untyped-decorator]
def _place(t: Any, first: Any, last: Any) -> Any:
    at = tl.floor(2.0 * t) - first
    return tl.where(at > 0.0, tl.minimum(at, last), 0.0).to(tl.int32)  # NaN becomes 0


@triton.jit  # type: ignore[untyped-decorator]
def _reciprocal(s: Any) -> Any:
    return tl.where(s == 0.0, 0.0, tl.div_rn(1.0, tl.where(s == 0.0, 1.0, s)))


@triton.jit  # type: ignore[untyped-decorator]
def _sweep(
    x: Any,
    U: Any,
    inverse_U: Any,
    scale: Any,
    offset: Any,
    unit: Any,
    levels: Any,
    bins: Any,
    first: Any,
    last: Any,
    best: Any,
    codes: Any,
    errors: Any,
    units: Any,
    K: Any,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column, k = tl.arange(0, SIZE), tl.arange(0, WIDE)
    left = tl.broadcast_to(tl.load(x + row * SIZE + column)[None, :], (WIDE, SIZE))
    cost = tl.zeros((WIDE,), tl.float32)
    tried = tl.zeros((WIDE, SIZE), tl.float32)
    chosen = tl.zeros((WIDE, SIZE), tl.int32)
    for j in range(SIZE):
        here = column[None, :] == j
        at = (row * units + tl.load(unit + j)) * K + k
        s = tl.load(scale + at, mask=k < K, other=0.0)
        o = tl.load(offset + at, mask=k < K, other=0.0)
        own = tl.sum(tl.where(here, left, 0.0), axis=1)
        code = tl.load(bins + _place((own - o) * _reciprocal(s), first, last)).to(tl.int32)
        e = (own - (s * tl.load(levels + code) + o)) * tl.load(inverse_U + j)
        cost += e * e
        tried = tl.where(here, e[:, None], tried)
        chosen = tl.where(here, code[:, None], chosen)
        u = tl.load(U + j * SIZE + column)
        left = tl.where(column[None, :] > j, left - u[None, :] * e[:, None], left)
    least = tl.argmin(tl.where(k < K, cost, float("inf")), axis=0)
    mine = k[:, None] == least
    tl.store(best + row, least.to(tl.int64))
    tl.store(errors + row * SIZE + column, tl.sum(tl.where(mine, tried, 0.0), axis=0))
    kept = tl.sum(tl.where(mine, chosen, 0), axis=0)
    tl.store(codes + row * SIZE + column, kept.to(tl.uint8))


@triton.jit  # type: ignore[untyped-decorator]
def _descend(
    gradient: Any,
    H: Any,
    scale: Any,
    offset: Any,
    levels: Any,
    bins: Any,
    first: Any,
    last: Any,
    codes: Any,
    Q: Any,
    residual: Any,
    SIZE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    at = row * SIZE + column
    g, q, r = tl.load(gradient + at), tl.load(Q + at), tl.load(residual + at)
    c = tl.load(codes + at).to(tl.int32)
    for j in range(SIZE):
        here = column == j
        s, o = tl.load(scale + row * SIZE + j), tl.load(offset + row * SIZE + j)
        own, slope = tl.sum(tl.where(here, q, 0.0), axis=0), tl.sum(tl.where(here, g, 0.0), axis=0)
        target = own + tl.div_rn(slope, tl.load(H + j * SIZE + j))
        code = tl.load(bins + _place((target - o) * _reciprocal(s), first, last)).to(tl.int32)
        same = code == tl.sum(tl.where(here, c, 0), axis=0)
        change = tl.where(same, 0.0, s * tl.load(levels + code) + o - own)
        g = g - tl.load(H + j * SIZE + column) * change
        c = tl.where(here, code, c)
        q = tl.where(here, q + change, q)
        r = tl.where(here, r - change, r)
    tl.store(gradient + at, g)
    tl.store(codes + at, c.to(tl.uint8))
    tl.store(Q + at, q)
    tl.store(residual + at, r)
