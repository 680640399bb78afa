"""Rounding with error feedback (LDLQ/GPTQ) whose block scales are fitted inside the sweep.

Minimises tr((W−Q) H (W−Q)ᵀ) over codes and scales. With H⁻¹ = UᵀU, U upper, the error made in
column j, divided by U_jj, is fed back into the columns still to come (Frantar et al., GPTQ,
arXiv 2210.17323, eq. 2–3; the same as LDLQ of Chee et al., arXiv 2307.13304, eq. 4, with the
columns reversed); the cost left after the sweep is Σ_j ((W_j − Q_j)/U_jj)² over the compensated
columns W_j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.decompose._kernels import descend, sweep
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
    left = W.float()[:, m.columns]
    codes: Tensor = torch.empty(rows, width, dtype=torch.uint8)
    grids: list[Grid] = [{}] * (width // size)
    for start in range(0, width, size):
        here = slice(start, start + size)
        columns = m.columns[here]
        grid, chosen, errors = _block(fmt, left[:, here], m.U[here, here], columns % size)
        left[:, start + size :] -= errors @ m.U[here, start + size :]
        codes[:, columns] = chosen
        grids[int(columns[0]) // size] = grid
    grid = {field: torch.cat([g[field] for g in grids], dim=1) for field in grids[0]}
    if passes:
        _descend(fmt, W.float(), m.H, codes, grid, passes)
    return QuantizedTensor(fmt.name, codes, grid)


def _block(fmt: Scalar, x: Tensor, U: Tensor, inside: Tensor) -> tuple[Grid, Tensor, Tensor]:
    """Grid, codes and errors/U_jj of a block x ``[rows, size]`` whose columns stand in the order
    `inside`: of the format's candidate grids, for each row the one that costs least after error
    feedback inside the block."""
    rows, size = x.shape
    in_storage = inside.argsort()
    importance = U.diagonal()[in_storage] ** -2
    candidates = fmt.candidates(x[:, in_storage].contiguous(), importance)
    K = next(iter(candidates.values())).shape[1]
    flat = {field: v.reshape(rows * K, 1, *v.shape[2:]) for field, v in candidates.items()}
    scale, offset = (
        torch.unflatten(v[:, inside], 0, (rows, K)).contiguous() for v in fmt.affine(flat)
    )
    best = torch.zeros(rows, dtype=torch.int64)
    codes, errors = torch.zeros(rows, size, dtype=torch.uint8), torch.zeros(rows, size)
    _call(sweep, (x, U, scale, offset), fmt, (best, codes, errors))
    row = torch.arange(rows)
    return {field: v[row, best][:, None] for field, v in candidates.items()}, codes, errors


def _descend(fmt: Scalar, W: Tensor, H: Tensor, codes: Tensor, grid: Grid, passes: int) -> None:
    """Coordinate descent over the columns of Q at fixed scales, `codes` in place.

    The best value of column c given all others is Q_c + ((W−Q)H)_c / H_cc.
    """
    size = fmt.block_size
    scale, offset = (v.contiguous() for v in fmt.affine(grid))
    Q = fmt.decode(codes, grid)
    residual = W - Q
    for start in [*range(0, W.shape[1], size)] * passes:
        here = slice(start, start + size)
        block = [t[:, here].contiguous() for t in (codes, Q, residual)]
        gradient = residual @ H[:, here]
        _call(descend, (gradient, H[here, here], scale[:, here], offset[:, here]), fmt, block)
        codes[:, here], Q[:, here], residual[:, here] = block


def _call(
    kernel: Callable[..., None], inputs: Sequence[Tensor], fmt: Scalar, outputs: Sequence[Tensor]
) -> None:
    """Run a compiled kernel on tensors; `outputs` are filled in place."""
    bins, first = fmt.code_levels.bins
    arrays = (t.contiguous().numpy() for t in (*inputs, fmt.levels, bins))
    kernel(*arrays, first, *(t.numpy() for t in outputs))
