"""Adam whose steps are fractions of the trained values, with warm-up, cosine decay and clipping.

A block's scale of 0.03 and a norm's gain of 5 both move by a fraction of themselves, so one
learning rate fits all scales of a model in any format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND, EPSILON = 0.9, 0.95, 1e-12
"""Decay of the moments (the second decays faster than usual, because there are few steps), and the
term that avoids 0 / 0; gradients are of order 1e-6 to 1."""


def unit_step(part: str, master: Tensor) -> Tensor:
    """What a step of 1 adds to a part. For scales: their magnitude, but at least half the mean of
    their row (so that an offset of 0 can change). For a factor: the root mean square of the column
    of L or row of R. For gains and biases: the root mean square of all of them."""
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
        """The moments before the first step."""
        return Moments(torch.zeros_like(like), torch.zeros_like(like))

    @torch.no_grad()
    def update(self, gradient: Tensor, step: int) -> Tensor:
        """Add the gradient of step `step`, counted from 0; returns the direction, of order 1
        (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""
        self.first.lerp_(gradient, 1 - FIRST)
        self.second.lerp_(gradient.square(), 1 - SECOND)
        mean = self.first / (1 - FIRST ** (step + 1))
        square = self.second / (1 - SECOND ** (step + 1))
        return mean / (square.sqrt() + EPSILON)
