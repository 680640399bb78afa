"""Values that float16 scales cannot hold: NaN and infinity are refused, values that are too large
or too small are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.weights import QuantizedTensor
from edgepack.errors import DecompositionError

FP16_MAX, FP16_NORMAL = 65504.0, 2.0**-14
LARGEST = 3e8
"""Larger weights are clipped before anything is fitted: no block type with float16 scales holds
them (q6_k: 65504·127·31), and their squares overflow float32 or hide all others."""
_ROWS = 4096  # rows compared at once


def check_finite(what: str, values: Tensor | None) -> None:
    """Refuse NaN and infinity; `what` names the values in the error."""
    if values is None or all(
        bool(torch.isfinite(part).all()) for part in torch.split(values, _ROWS)
    ):
        return
    count = int((~torch.isfinite(values)).sum())
    raise DecompositionError(
        f"{what} has {count} of {values.numel()} values that are not finite (NaN or infinite)",
        hint="the checkpoint is damaged, or the model overflows on the calibration text",
    )


@dataclass(frozen=True)
class Losses:
    """Numbers of values that a matrix loses because its scales are float16. `clipped` values are
    larger than the largest scale allows. `lost` values lie in blocks that became 0 or nearly (they
    miss half of their Σ w² or more), because their scales are near the smallest float16."""

    clipped: int = 0
    lost: int = 0


def losses(W: Tensor, dense: Tensor, q: QuantizedTensor) -> Losses:
    """Values of W ``[out, in]`` that `dense` has lost; `q` is all of `dense` or its Q. Where values
    are float16 themselves, a row counts as a block."""
    halves = [v for v in (q.codes, *q.grid.values()) if v.dtype == torch.float16]
    limit = q.plugin.largest
    clipped = int((W.abs() > limit).sum())
    if not halves:
        return Losses(clipped)
    blocks = q.grid["d"].shape[1] if q.grid else 1
    lost = 0
    for start in range(0, len(W), _ROWS):
        rows = slice(start, start + _ROWS)
        w, miss = (t.double().reshape(len(t), blocks, -1) for t in (W[rows], (W - dense)[rows]))
        scale = torch.stack([h[rows].float().abs().reshape(len(w), blocks, -1) for h in halves])
        scale = scale.amax((0, -1)) if q.grid else w.abs().amax(-1)
        largest = dense[rows].abs().double().view_as(w)
        full = largest >= FP16_MAX if not q.grid else (scale >= FP16_MAX).unsqueeze(-1)
        clipped += int((full & (miss.abs() > 1e-3 * w.abs()) & _outwards(w, largest, limit)).sum())
        size = w.square().sum(-1)
        gone = (scale < FP16_NORMAL) & (size > 0) & (miss.square().sum(-1) >= size / 2)
        lost += int(((w != 0) & gone.unsqueeze(-1)).sum())
    return Losses(clipped, lost)


def _outwards(w: Tensor, stored: Tensor, limit: float) -> Tensor:
    """Mask of values above float16's largest, and up to `limit`, that were stored smaller."""
    return (w.abs() > FP16_MAX) & (w.abs() <= limit) & (stored < w.abs())
