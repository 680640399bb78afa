"""Rounding to integers times a learned step (LSQ, Esser et al., arXiv 1902.08153)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgepack.errors import RecipeError

BITS = range(2, 9)
"""Bits of a code that are allowed: one bit has no symmetric levels but 0, int8 holds eight."""
SMALLEST = 1e-30
"""Steps are at least this, so that a tensor of zeros does not divide by zero."""


def largest_code(bits: int) -> int:
    """Q: codes go from −Q to Q = 2^(bits−1) − 1, as in the paper (the published code of arXiv
    2306.11987 has one more below)."""
    if bits not in BITS:
        raise RecipeError(f"{bits} bits are not possible", hint="use 2 to 8 bits")
    return int(2 ** (bits - 1)) - 1


def initial_step(x: Tensor, bits: int) -> Tensor:
    """2·mean|x|/√Q, of shape ``[]``: the step that training starts with (arXiv 1902.08153, section
    2.1)."""
    mean = x.detach().abs().mean()
    return (2 / math.sqrt(largest_code(bits)) * mean).clamp_min(SMALLEST)


def codes(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """round(clamp(x/step, −Q, Q)), integers in x's own type."""
    Q = largest_code(bits)
    return (x / step).clamp_(-Q, Q).round_()


def quantize(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """step·`codes`, of x's shape, for a learned step of shape ``[]``.

    Gradients (arXiv 1902.08153, equations 3 and 5): that of x passes where x/step is in range and
    is 0 elsewhere. That of step is the sum of the gradient times round(x/step) − x/step in range
    and ±Q outside, times 1/√(Q·numel) so that it is in proportion to the step. A negative step
    counts as its magnitude.
    """
    quantized: Tensor = _Quantize.apply(x, step.abs().clamp_min(SMALLEST), bits)  # type: ignore[no-untyped-call]
    return quantized


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.bits = bits
        return codes(x, step, bits).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, step = ctx.saved_tensors
        Q = largest_code(ctx.bits)
        ratio = x / step
        inside = ratio.abs() <= Q
        of_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, ratio.round() - ratio, ratio.sign() * Q)
            of_step = (gradient * slope).sum() / math.sqrt(Q * x.numel())
        return gradient * inside, of_step, None
