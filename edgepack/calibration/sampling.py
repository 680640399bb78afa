"""Drawing tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index ``[rows]`` per row of ``[rows, vocab]`` (not necessarily normalised), by inverting
    the cumulative distribution: eight times faster than `torch.multinomial`."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    point = torch.rand(total.shape, generator=generator) * total
    index = torch.searchsorted(cumulative, point, right=True)[:, 0]
    return index.clamp_max(probabilities.shape[-1] - 1)
