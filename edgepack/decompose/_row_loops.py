"""The loops of `_kernels` for independent rows, on devices other than the CPU: all rows at once.

Columns wait for one another, rows do not. On CUDA with Triton, a row is a program
(`_triton_loops`); else every column is a few operations of torch over all rows and candidates. The
order of operations is that of `_kernels`, so codes are the same, up to the rounding of products and
sums where a compiler fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@cache
def has_triton() -> bool:
    """Whether Triton is installed, as it is with torch for CUDA on Linux."""
    return find_spec("triton") is not None


def sweep(
    x: Tensor,
    U: Tensor,
    units: Sequence[Tensor],
    unit: Tensor,
    lookup: tuple[Tensor, Tensor, float],
    out: Sequence[Tensor],
) -> None:
    """As `_kernels.sweep` without an U_out; `lookup` are levels, bins and the first bin."""
    scale, offset = (values.contiguous() for values in units)
    if x.device.type == "cuda" and has_triton():
        _triton().sweep(x, U, scale, offset, unit, lookup, out)
        return
    inverse, inverse_U = _inverse(scale), U.diagonal().reciprocal()
    left = x[:, None].repeat(1, scale.shape[2], 1)
    errors, codes = torch.empty_like(left), torch.empty_like(left, dtype=torch.uint8)
    for j, place in enumerate(unit.tolist()):
        s, o = scale[:, place], offset[:, place]
        code, level = _nearest((left[..., j] - o) * inverse[:, place], lookup)
        codes[..., j] = code
        e = (left[..., j] - (s * level + o)) * inverse_U[j]
        errors[..., j] = e
        left[..., j + 1 :] -= U[j, j + 1 :] * e[..., None]
    best = errors.square().sum(-1).argmin(1)
    row = torch.arange(len(x), device=x.device)
    for target, values in zip(out, (best, codes[row, best], errors[row, best]), strict=True):
        target.copy_(values)


def descend(
    gradient: Tensor,
    H: Tensor,
    affine: Sequence[Tensor],
    lookup: tuple[Tensor, Tensor, float],
    out: Sequence[Tensor],
) -> None:
    """As `_kernels.descend` without an H_out."""
    scale, offset = (values.contiguous() for values in affine)
    if gradient.device.type == "cuda" and has_triton():
        _triton().descend(gradient, H, scale, offset, lookup, out)
        return
    codes, Q, residual = out
    inverse = _inverse(scale)
    for j in range(gradient.shape[1]):
        s, o = scale[:, j], offset[:, j]
        target = Q[:, j] + gradient[:, j] / H[j, j]
        code, level = _nearest((target - o) * inverse[:, j], lookup)
        change = torch.where(code == codes[:, j], 0.0, s * level + o - Q[:, j])
        gradient -= change[:, None] * H[j]
        codes[:, j] = code
        Q[:, j] += change
        residual[:, j] -= change


def _triton() -> Any:
    from edgepack.decompose import _triton_loops

    return _triton_loops


def _inverse(scale: Tensor) -> Tensor:
    """1/scale, and 0 for 0."""
    return torch.where(scale == 0, 0.0, scale.reciprocal())


def _nearest(t: Tensor, lookup: tuple[Tensor, Tensor, float]) -> tuple[Tensor, Tensor]:
    """The codes nearest to t, and their levels; NaN is the first code."""
    levels, bins, first = lookup
    at = ((2 * t).floor_() - first).nan_to_num_(nan=0.0).clamp_(0, len(bins) - 1)
    code = bins[at.long()]
    return code, levels[code.int()]
