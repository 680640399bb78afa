"""Adam whose steps are fractions of what is trained, with warm-up, cosine decay and clipping.

A block's scale of 0.03 and a norm's gain of 5 are both moved by a share of themselves, so one
learning rate does for all scales of a model, whatever the format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND, EPSILON = 0.9, 0.95, 1e-12
"""Decay of the moments (the second one faster than usual: there are few steps), and what keeps a
gradient of 0 from dividing by 0; gradients are of order 1e-6 to 1."""


def size(part: str, master: Tensor) -> Tensor:
    """What a step of 1 adds to a part: its own magnitude, for scales no less than half the mean of
    their row (an offset of 0 is not bound to stay 0), for a factor its root mean square along a
    column of L or a row of R, for gains and biases that of all of them."""
    if part in ("L", "R"):
        return master.square().mean(0 if part == "L" else 1, keepdim=True).sqrt()
    if master.ndim == 1:
        return master.square().mean().sqrt()
    magnitude = master.abs()
    return magnitude.maximum(magnitude.mean(1, keepdim=True) / 2)


def schedule(step: int, steps: int, warm_up: float = 0.05) -> float:
    """The learning rate of a step as a share of the highest: a linear start, then a half cosine."""
    warm = max(1, round(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class Moments:
    """Decayed means of a gradient and of its square."""

    first: Tensor
    second: Tensor

    @staticmethod
    def zero(like: Tensor) -> Moments:
        """Before the first step."""
        return Moments(torch.zeros_like(like), torch.zeros_like(like))

    @torch.no_grad()
    def update(self, gradient: Tensor, step: int) -> Tensor:
        """Take in a gradient, the `step`-th from 0 on; returns the direction to go, of order 1
        (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""
        self.first.lerp_(gradient, 1 - FIRST)
        self.second.lerp_(gradient.square(), 1 - SECOND)
        mean = self.first / (1 - FIRST ** (step + 1))
        square = self.second / (1 - SECOND ** (step + 1))
        return mean / (square.sqrt() + EPSILON)
