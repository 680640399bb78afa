"""Weighted least-squares search for the scales of many blocks at once.

Blocks are rows: x and w ``[n, columns]``, one block each. First every probe is scored by the error
after a least-squares fit to its codes; then the best few are refined, their codes chosen again and
their scales rounded as stored, and ranked by the true error. Of each group of neighbouring probes
only the best goes on, so that the few kept differ from one another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgepack.formats._levels import Levels

TINY = 1e-30
REFITS = 2
FP16_MAX = 65504.0
ROUNDING_COUNTS = 64.0
"""How much more the rounding of d counts when probes are scored: the closed form is exact to 1e-7
only, and of several grids through all x of a block the one meant is that with d in fp16."""

Round = Callable[[Tensor], Tensor]
"""What storing does to a scale: `half`, or nothing for scales that are quantized later."""


def half(scale: Tensor) -> Tensor:
    """Rounded to fp16 and back; what overflows becomes the largest fp16."""
    return scale.clamp(-FP16_MAX, FP16_MAX).to(torch.float16).to(torch.float32)


def unrounded(scale: Tensor) -> Tensor:
    """As it is."""
    return scale


def reciprocal(scale: Tensor) -> Tensor:
    """1/scale, and 0 for 0 (or what would overflow): then every x takes the level nearest 0."""
    return torch.where(scale.abs() < TINY, 0.0, scale.reciprocal())


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b for b ≥ 0, and 0 where b vanishes."""
    return torch.where(b > TINY, a / b.clamp_min(TINY), 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over the last dimension."""
    return (a * b).sum(-1)


def normalized(w: Tensor) -> Tensor:
    """Weights with mean 1 per block; a block without any weight counts all its columns alike."""
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


def _leaders(score: list[Tensor], groups: int, keep: int) -> Tensor:
    """Indices ``[n, keep]`` of the best probes, at most one of each group of neighbours."""
    scores = torch.unflatten(torch.stack(score, dim=1), 1, (groups, -1))
    value, member = scores.max(dim=2)
    group = value.topk(min(keep, groups), dim=1).indices
    leaders: Tensor = group * scores.shape[2] + member.gather(1, group)
    return leaders


def one_scale(
    x: Tensor, w: Tensor, levels: Levels, probes: Tensor, keep: int, stored: Round
) -> tuple[Tensor, Tensor]:
    """Errors and scales d ``[n, keep]``, best first, for x ≈ d·level.

    A probe p of `probes` ``[groups, members]`` starts from the d that puts the largest |x| onto
    level value p, so the levels themselves find any x that lies on a grid exactly.
    """
    visible = torch.where(w > 0, x, 0.0)
    peak = visible.gather(1, visible.abs().argmax(1, keepdim=True))
    inverse, wx = reciprocal(peak), w * x
    scores, scales = [], []
    for p in probes.flatten().tolist():
        level = levels.nearest(x * (inverse * p))
        scale = stored(ratio(dot(wx, level), dot(w * level, level)))
        miss = level.mul_(scale.unsqueeze(-1)).sub_(x)
        scores.append(-dot(w * miss, miss))
        scales.append(scale)
    starts = torch.stack(scales, 1).gather(1, _leaders(scores, len(probes), keep))
    errors, kept = [], []
    for d in starts.unsqueeze(-1).unbind(1):
        for _ in range(REFITS):
            level = levels.nearest(x * reciprocal(d))
            d = ratio(dot(wx, level), dot(w * level, level)).unsqueeze(-1)
        d = stored(d)
        miss = levels.nearest(x * reciprocal(d)).mul_(d).sub_(x)
        errors.append(dot(w * miss, miss))
        kept.append(d.squeeze(-1))
    error, scale = best_first(torch.stack(errors, 1), torch.stack(kept, 1))
    return error, scale


def scale_min(
    x: Tensor, w: Tensor, top: int, probes: Tensor, keep: int, stored: Round, negative: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, scales d and offsets m ``[n, keep]``, best first, for x ≈ d·q + m, q in 0 … top.

    A probe (r, a) of `probes` ``[groups, members, 2]`` cuts the range of x into r steps and leaves
    out a·(r − top) of them at its low end. With `negative`, m ≤ 0 (as K-quants store it).
    """
    low = torch.where(w > 0, x, torch.inf).amin(1, keepdim=True)
    high = torch.where(w > 0, x, -torch.inf).amax(1, keepdim=True)
    if negative:
        low = low.clamp_max(0.0)
    inverse, total = reciprocal(high - low), w.sum(-1)
    mean = ratio(dot(w, x), total).unsqueeze(-1)
    from_low, wx = x - low, w * (x - mean)
    scores, scales, offsets = [], [], []
    for r, a in probes.flatten(0, 1).tolist():
        q = (from_low * (inverse * r)).sub_(a * (r - top)).round_().clamp_(0, top)
        wq = w * q
        lx, sum_q = dot(wx, q), wq.sum(-1)
        spread_q = dot(wq, q) - sum_q * ratio(sum_q, total)
        d = ratio(lx, spread_q)
        scores.append(d * lx - ROUNDING_COUNTS * (d - stored(d)).square() * spread_q)
        scales.append(d)
        offsets.append(mean.squeeze(-1) - d * ratio(sum_q, total))
    leaders = _leaders(scores, len(probes), keep)
    starts = [
        torch.stack(values, 1).gather(1, leaders).unsqueeze(-1) for values in (scales, offsets)
    ]
    errors, kept = [], []
    for d, m in zip(*(start.unbind(1) for start in starts), strict=True):
        for _ in range(REFITS):
            d, m = _refit(x, w, nearest_code(x, d, m, top), negative)
        d, m = _settled(x, w, d, m, top, stored)
        miss = nearest_code(x, d, m, top).mul_(d).add_(m).sub_(x)
        errors.append(dot(w * miss, miss))
        kept.append((d.squeeze(-1), m.squeeze(-1)))
    d, m = (torch.stack(values, 1) for values in zip(*kept, strict=True))
    error, d, m = best_first(torch.stack(errors, 1), d, m)
    return error, d, m


def nearest_code(x: Tensor, d: Tensor, m: Tensor, top: int) -> Tensor:
    """Codes 0 … top (float32) of x on d·q + m."""
    return (x - m).mul_(reciprocal(d)).round_().clamp_(0, top)


def _refit(x: Tensor, w: Tensor, q: Tensor, negative: bool) -> tuple[Tensor, Tensor]:
    """Least squares for (d, m) ``[n, 1]`` with the codes fixed."""
    wq, total = w * q, w.sum(-1)
    mean_q, mean_x = ratio(wq.sum(-1), total), ratio(dot(w, x), total)
    qx, qq = dot(wq, x - mean_x.unsqueeze(-1)), dot(wq, q - mean_q.unsqueeze(-1))
    d = ratio(qx, qq)
    m = mean_x - d * mean_q
    if negative:
        d = torch.where(m > 0, ratio(dot(wq, x), dot(wq, q)), d)
        m = m.clamp_max(0.0)
    return d.unsqueeze(-1), m.unsqueeze(-1)


def _settled(
    x: Tensor, w: Tensor, d: Tensor, m: Tensor, top: int, stored: Round
) -> tuple[Tensor, Tensor]:
    """(d, m) as stored: m re-fitted to the rounded d, on the code shift where it rounds best.

    Codes that leave part of 0 … top unused can move up or down by s with m moving by −s·d: the
    same values, but for the rounding of m. This finds grids that never use their lowest code.
    """
    if stored is not half:
        return d, m
    d = half(d)
    q = nearest_code(x, d, m, top)
    # In float64, or noise decides between shifts that all round well.
    m = ratio(dot(w, x.double() - d.double() * q), w.sum(-1).double()).unsqueeze(-1)
    shift = torch.arange(-top, top + 1, dtype=m.dtype, device=x.device)
    moved = m - shift * d
    allowed = (shift >= -q.amin(1, keepdim=True)) & (shift <= top - q.amax(1, keepdim=True))
    loss = torch.where(allowed, (half(moved) - moved).abs(), torch.inf)
    return d, half(moved.gather(1, loss.argmin(1, keepdim=True)))
