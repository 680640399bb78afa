"""Rounding with error feedback (LDLQ/GPTQ) whose block scales are fitted inside the sweep.

Minimises tr((W−Q) H (W−Q)ᵀ) over codes and scales. With H⁻¹ = UᵀU, U upper, the error made in
column j, divided by U_jj, is fed back into the columns still to come (Frantar et al., GPTQ,
arXiv 2210.17323, eq. 2–3; the same as LDLQ of Chee et al., arXiv 2307.13304, eq. 4, with the
columns reversed); the cost left after the sweep is Σ_j ((W_j − Q_j)/U_jj)² over the compensated
columns W_j. Inside, tensors are kept as ``[columns, rows]`` so that a column is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.formats._scalar import Scalar
from edgepack.linalg import damped, inverse_factor
from edgepack.weights import Grid, QuantizedTensor

_ROWS = 8192  # rows are independent: so many at once, whatever the size of the vocabulary


@dataclass(frozen=True)
class Metric:
    """What LDLQ needs of one damped H: computed once, used for every weight that shares it."""

    H: Tensor
    """Damped, mean diagonal 1 + damping, float32 ``[in, in]``."""
    U: Tensor
    """H⁻¹ = UᵀU in the order of `columns`, upper, float32 ``[in, in]``."""
    columns: Tensor
    """Order of processing: blocks by descending trace of H, columns inside them by diagonal."""


def metric(H: Tensor, block_size: int, damping: float) -> Metric:
    """Prepare H ``[in, in]`` for sweeps over blocks of `block_size` columns."""
    H = damped(H, damping)
    by_block = H.diagonal().view(-1, block_size)
    inside = by_block.argsort(dim=1, descending=True, stable=True)
    blocks = by_block.sum(1).argsort(descending=True, stable=True)
    columns = (inside + torch.arange(len(blocks))[:, None] * block_size)[blocks].flatten()
    U = inverse_factor(H[columns][:, columns])
    return Metric(H.float(), U.float(), columns)


def ldlq(W: Tensor, m: Metric, fmt: Scalar, passes: int = 2) -> QuantizedTensor:
    """Q for W ``[out, in]`` in the metric `m`, then `passes` rounds of coordinate descent."""
    parts = [_ldlq(rows, m, fmt, passes) for rows in torch.split(W, _ROWS)]
    grid = {field: torch.cat([p.grid[field] for p in parts]) for field in parts[0].grid}
    return QuantizedTensor(fmt.name, torch.cat([p.codes for p in parts]), grid)


def _ldlq(W: Tensor, m: Metric, fmt: Scalar, passes: int) -> QuantizedTensor:
    size, (rows, width) = fmt.block_size, W.shape
    left = W.T.float()[m.columns].clone()
    codes: Tensor = torch.empty(width, rows, dtype=torch.uint8)
    grids: list[Grid] = [{}] * (width // size)
    for start in range(0, width, size):
        here = slice(start, start + size)
        columns = m.columns[here]
        inside = columns % size
        block = int(columns[0]) // size
        U = m.U[here, here]
        grid = _fit(fmt, left[here], U, inside)
        chosen, errors = _sweep(fmt, left[here], U, grid, inside)
        left[start + size :] -= m.U[here, start + size :].T @ errors
        codes[columns] = chosen
        grids[block] = grid
    grid = {field: torch.cat([g[field] for g in grids], dim=1) for field in grids[0]}
    for _ in range(passes):
        _descend(fmt, W.T.float(), m.H, codes, grid)
    return QuantizedTensor(fmt.name, codes.T.contiguous(), grid)


def _fit(fmt: Scalar, x: Tensor, U: Tensor, inside: Tensor) -> Grid:
    """The grid for a block ``[size, rows]``: of the format's candidates, for each row the one
    that costs least after error feedback inside the block."""
    position = inside.argsort()
    importance = U.diagonal()[position] ** -2
    candidates = fmt.candidates(x[position].T.contiguous(), importance)
    K = next(iter(candidates.values())).shape[1]
    rows = x.shape[1]
    flat = {field: v.reshape(rows * K, 1, *v.shape[2:]) for field, v in candidates.items()}
    _, errors = _sweep(fmt, x.repeat_interleave(K, dim=1), U, flat, inside)
    best = errors.square().sum(0).view(rows, K).argmin(1)
    row = torch.arange(rows)
    return {field: v[row, best][:, None] for field, v in candidates.items()}


def _sweep(fmt: Scalar, x: Tensor, U: Tensor, grid: Grid, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Round the columns of one block in turn; returns codes and errors/U_jj, ``[size, rows]``."""
    x = x.clone()
    codes = torch.empty(x.shape, dtype=torch.uint8)
    errors = torch.empty_like(x)
    scale, offset = (v.T.contiguous() for v in fmt.affine(grid))
    for j, column in enumerate(inside.tolist()):
        codes[j], value = _round(fmt, x[j], scale[column], offset[column])
        errors[j] = (x[j] - value) / U[j, j]
        x[j + 1 :] -= U[j, j + 1 :, None] * errors[j]
    return codes, errors


def _round(fmt: Scalar, x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes and their values for x ``[rows]`` on the grid scale·level + offset."""
    codes = fmt.nearest(x, scale, offset)
    return codes, scale * fmt.levels[codes.long()] + offset


def _descend(fmt: Scalar, W: Tensor, H: Tensor, codes: Tensor, grid: Grid) -> None:
    """One pass of coordinate descent over the columns of Q at fixed scales, in place.

    The best value of column c given all others is Q_c + ((W−Q)H)_c / H_cc.
    """
    size = fmt.block_size
    scale, offset = (v.T.contiguous() for v in fmt.affine(grid))
    Q = scale * fmt.levels[codes.long()] + offset
    residual = W - Q
    for start in range(0, W.shape[0], size):
        here = slice(start, start + size)
        gradient = H[here] @ residual
        H_block = H[here, here]
        for j in range(size):
            c = start + j
            wanted = Q[c] + gradient[j] / H_block[j, j]
            codes[c], value = _round(fmt, wanted, scale[c], offset[c])
            change = value - Q[c]
            gradient -= H_block[:, j, None] * change
            residual[c] -= change
            Q[c] = value
