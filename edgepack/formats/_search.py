"""Weighted least-squares search for the scales of many blocks at once.

Blocks are rows: x and w ``[n, columns]``, one block each. First every probe is scored by the error
after a least-squares fit to its codes. Only the best of each group of neighbouring probes is kept,
so that the kept ones differ from one another. Then the best few are refined: their codes are chosen
again, their scales are rounded as stored, and they are ranked by the true error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgepack.formats import _scale_kernels as kernels
from edgepack.formats._levels import Levels

TINY = 1e-30
FP16_MAX = 65504.0


def half(scale: Tensor) -> Tensor:
    """Rounded to fp16 and back; overflow becomes the largest fp16."""
    return scale.clamp(-FP16_MAX, FP16_MAX).to(torch.float16).to(torch.float32)


def reciprocal(scale: Tensor) -> Tensor:
    """1/scale, or 0 where that overflows or the scale is 0: every x takes the level nearest 0."""
    return torch.where(scale.abs() < TINY, 0.0, scale.reciprocal())


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b for b ≥ 0, and 0 where b vanishes."""
    return torch.where(b > TINY, a / b.clamp_min(TINY), 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over the last dimension."""
    return (a * b).sum(-1)


def normalize(w: Tensor) -> Tensor:
    """Weights with mean 1 per block; a block whose weights are all 0 gets equal ones."""
    mean = w.mean(-1, keepdim=True)
    return torch.where(mean > TINY, w / mean.clamp_min(TINY), 1.0)


def best_first(error: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
    """Error and fields ``[n, K, …]`` sorted by error ``[n, K]``."""
    error, order = error.sort(dim=1)
    return error, *(pick(values, order) for values in fields)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Entries ``index [n, K]`` of values ``[n, M, …]`` along dimension 1."""
    wide = index.reshape(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, wide.expand(*index.shape, *values.shape[2:]))


def one_scale(
    x: Tensor, w: Tensor, levels: Levels, probes: Tensor, keep: int, *, fp16: bool = True
) -> tuple[Tensor, Tensor]:
    """Errors and scales d ``[n, keep]``, best first, for x ≈ d·level; d is rounded to fp16.

    A probe p of `probes` ``[groups, members]`` starts from the d that puts the largest |x| onto
    level value p, so the levels themselves find any x that lies on a grid exactly. w may be
    ``[1, columns]``.
    """
    bins, first = levels.bins
    table = levels.values[bins.long()].numpy()
    error, scale = (torch.empty(len(x), min(keep, len(probes))) for _ in range(2))
    arrays = (t.float().contiguous().numpy() for t in (x, w, probes))
    kernels.one_scale(*arrays, table, np.float32(first), fp16, error.numpy(), scale.numpy())
    return error, scale


def scale_min(
    x: Tensor,
    w: Tensor,
    top: int,
    probes: Tensor,
    keep: int,
    *,
    fp16: bool = True,
    negative: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, scales d and offsets m ``[n, keep]``, best first, for x ≈ d·q + m, q in 0 … top.

    A probe (r, a) of `probes` ``[groups, members, 2]`` cuts the range of x into r steps and leaves
    out a·(r − top) of them at its low end. With `negative`, m ≤ 0 (as K-quants store it).
    """
    error, d, m = (torch.empty(len(x), min(keep, len(probes))) for _ in range(3))
    arrays = (t.float().contiguous().numpy() for t in (x, w, probes))
    found = (t.numpy() for t in (error, d, m))
    kernels.scale_min(*arrays, np.float32(top), fp16, negative, *found)
    return error, d, m
