"""Rounding with error feedback (LDLQ/GPTQ) whose block scales are fitted inside the sweep.

Minimises tr(H_out (W−Q) H (W−Q)ᵀ) over codes and scales; H_out is the identity where none is given.
With H⁻¹ = UᵀU, U upper, the error made in column j, divided by U_jj, is fed back into the later
columns (Frantar et al., GPTQ, arXiv 2210.17323, eq. 2–3; the same as LDLQ of Chee et al., arXiv
2307.13304, eq. 4, with the columns reversed). With H_out it is fed back into the later rows as well
(Tseng et al., YAQA, arXiv 2505.22988, eq. 5): with Ẽ_ij the error of an element divided by
U_jj·U_out,ii, the element (i, j) is rounded at W_ij − (U_outᵀ Ẽ U)_ij summed over the elements
before it, and the final cost is Σ Ẽ². Vector codebooks are rounded by groups of columns; a group's
part of U takes the place of U_jj (see `_rounders`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.accelerator import CPU, moved
from edgepack.core.linalg import NOISE, damp, damped_diagonal, inverse_factor_up_to_rounding
from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.decompose._rounders import rounder
from edgepack.formats._affine import Affine

_ROWS = 8192  # rows at once where they are independent (no H_out), to bound memory
_TILE = 128  # rows whose scales are chosen before any of them is rounded, with H_out
_NONE = torch.empty(0, 0)
OUT_DAMPING = 0.3
"""Damping of H_out relative to its mean diagonal; H_out only decides which outputs get errors."""


@dataclass(frozen=True)
class Metric:
    """Damped H and H_out, factored for LDLQ; computed once for all weights that share them."""

    H: Tensor
    """Damped, mean diagonal 1 + damping, float32 ``[in, in]``."""
    U: Tensor
    """H⁻¹ = UᵀU in the order of `columns`, upper, float32 ``[in, in]``."""
    columns: Tensor
    """Order of processing: blocks by descending trace of H, and groups inside a block as well."""
    group: int = 1
    """Columns that stay neighbours in `columns` (vector codebooks: 8 or 4)."""
    H_out: Tensor = _NONE
    """As H, for the output side, in the order of `rows`; empty for the identity."""
    U_out: Tensor = _NONE
    rows: Tensor = _NONE
    """Order of processing: rows by descending diagonal of H_out."""


def metric(
    H: Tensor, block_size: int, damping: float, H_out: Tensor | None = None, group: int = 1
) -> Metric:
    """Prepare H ``[in, in]`` (and H_out ``[out, out]``) for sweeps over blocks of `block_size`
    columns, `group` of which are encoded together."""
    damping = max(damping, NOISE)
    by_group = damped_diagonal(H, damping).view(-1, block_size // group, group).sum(2)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    blocks = by_group.sum(1).argsort(descending=True, stable=True)
    first = torch.arange(len(blocks), device=H.device)[:, None] * (block_size // group)
    groups = (inside + first)[blocks].flatten()
    columns = (groups[:, None] * group + torch.arange(group, device=H.device)).flatten()
    U = _factored(H, damping, columns)
    H = damp(H, damping, dtype=torch.float32)
    if H_out is None or H_out.dim() == 1:
        return Metric(H, U, columns, group)
    rows = damped_diagonal(H_out, OUT_DAMPING).argsort(descending=True, stable=True)
    U_out = _factored(H_out, OUT_DAMPING, rows)
    return Metric(H, U, columns, group, damp(H_out, OUT_DAMPING, rows, torch.float32), U_out, rows)


def _factored(H: Tensor, damping: float, order: Tensor) -> Tensor:
    """U of `Metric`. The one float64 copy of H is freed before anything else is made of H."""
    return inverse_factor_up_to_rounding(damp(H, damping, order)).float()


def ldlq(W: Tensor, m: Metric, fmt: Affine, passes: int = 2) -> QuantizedTensor:
    """Q for W ``[out, in]`` in the metric `m`, then `passes` rounds of coordinate descent."""
    if m.group % fmt.group:
        raise ValueError(f"{fmt.name} needs a metric of groups of {fmt.group} columns")
    if len(m.rows):
        back = m.rows.argsort()
        return _ldlq(W[m.rows], m, fmt, passes).permute_rows(back)
    parts = [_ldlq(rows, m, fmt, passes) for rows in torch.split(W, _ROWS)]
    grid = {field: torch.cat([p.grid[field] for p in parts]) for field in parts[0].grid}
    return QuantizedTensor(fmt.name, torch.cat([p.codes for p in parts]), grid)


def _ldlq(W: Tensor, m: Metric, fmt: Affine, passes: int) -> QuantizedTensor:
    W = W.float()
    codes, grid = _sweep(W, m, fmt)
    if passes:
        _descend(fmt, W, m, codes, grid, passes)
    return QuantizedTensor(fmt.name, codes, grid)


def _tiles(rows: int, m: Metric) -> list[slice]:
    """Slices of rows that are processed together."""
    size = _TILE if len(m.rows) else rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _sweep(W: Tensor, m: Metric, fmt: Affine) -> tuple[Tensor, Grid]:
    """Codes and grid after error feedback through all columns (and rows)."""
    size, (rows, width) = fmt.block_size, W.shape
    W = W[:, m.columns]
    effect = torch.zeros_like(W)  # Ẽ·U of the errors so far
    errors = W.new_empty(rows, size)
    codes: Tensor = W.new_empty(rows, width, dtype=torch.uint8)
    grids: list[Grid] = [{}] * (width // size)
    for start in range(0, width, size):
        here, after = slice(start, start + size), slice(start + size, width)
        columns, U, found = m.columns[here], m.U[here, here], []
        for tile in _tiles(rows, m):
            if len(m.rows):
                before = slice(0, tile.stop)
                x = W[tile, here] - m.U_out[before, tile].T @ effect[before, here]
            else:
                x = W[tile, here] - effect[tile, here]
            grid, chosen, errors[tile] = _block(fmt, x, U, m.U_out[tile, tile], columns % size)
            effect[tile, here] += errors[tile] @ U
            codes[tile, columns] = chosen
            found.append(grid)
        effect[:, after] += errors @ m.U[here, after]
        grids[int(columns[0]) // size] = {f: torch.cat([g[f] for g in found]) for f in found[0]}
    return codes, {field: torch.cat([g[field] for g in grids], dim=1) for field in grids[0]}


def _block(
    fmt: Affine, x: Tensor, U: Tensor, U_out: Tensor, inside: Tensor
) -> tuple[Grid, Tensor, Tensor]:
    """Grid, codes and normalised errors of a block x ``[rows, size]`` with columns in the order
    `inside`. Each row takes the format's candidate grid that costs least after error feedback
    inside the block."""
    how = rounder(fmt)
    if x.device != CPU and (len(U_out) or not how.anywhere):  # only the products are the device's
        on_cpu = _block(fmt, *moved((x, U, U_out, inside), CPU))
        found: tuple[Grid, Tensor, Tensor] = moved(on_cpu, x.device)
        return found
    rows, size = x.shape
    in_storage = inside.argsort()
    importance = how.importance(U)[in_storage]
    proposed = fmt.candidates(x[:, in_storage].contiguous().cpu(), importance.cpu())
    candidates: Grid = moved(proposed, x.device)
    K = next(iter(candidates.values())).shape[1]
    flat = {field: v.reshape(rows * K, 1, *v.shape[2:]) for field, v in candidates.items()}
    units = [v[:, :: fmt.unit].view(rows, K, -1).transpose(1, 2) for v in fmt.affine(flat)]
    best = x.new_zeros(rows, dtype=torch.int64)
    codes, errors = x.new_zeros(rows, size, dtype=torch.uint8), x.new_zeros(rows, size)
    how.sweep(x, U, U_out, units, inside // fmt.unit, (best, codes, errors))
    row = torch.arange(rows, device=x.device)
    return {field: v[row, best][:, None] for field, v in candidates.items()}, codes, errors


def _descend(fmt: Affine, W: Tensor, m: Metric, codes: Tensor, grid: Grid, passes: int) -> None:
    """Coordinate descent over the elements of Q at fixed scales, `codes` in place.

    The best value of element (i, j), given all others, is
    Q_ij + (H_out (W−Q) H)_ij / (H_out,ii·H_jj).
    """
    size, tiles, how = fmt.block_size, _tiles(len(W), m), rounder(fmt)
    scale, offset = (v.contiguous() for v in fmt.affine(grid))
    Q = fmt.decode(codes, grid)
    residual = W - Q
    effect = residual @ m.H if len(m.rows) else _NONE
    for start in [*range(0, W.shape[1], size)] * passes:
        here = slice(start, start + size)
        for tile in tiles:
            block = [t[tile, here].contiguous() for t in (codes, Q, residual)]
            if len(m.rows):
                gradient = m.H_out[tile] @ effect[:, here]
            else:
                gradient = residual[tile] @ m.H[:, here]
            old = block[2].clone()
            affine = scale[tile, here], offset[tile, here]
            how.descend(gradient, m.H[here, here], m.H_out[tile, tile], affine, block)
            codes[tile, here], Q[tile, here], residual[tile, here] = block
            if len(m.rows):
                effect[tile] += (block[2] - old) @ m.H[here]
