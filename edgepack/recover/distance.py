"""KL(original ‖ packed) of next-token distributions, and its gradient at the last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.accelerator import wide
from edgepack.model.decoder import Head, slope

LOGITS_BIAS = "output.bias"
"""The role of the vector that is added to the logits."""

TOKENS_AT_ONCE = 256
"""Tokens whose logits, of both models, are in memory at once."""


@dataclass(frozen=True)
class KlGradient:
    """Mean KL in nats a token, and its gradient at hidden states ``[n, hidden]`` and at the head's
    vectors (the final norm's gain and bias, the logits' bias), by role."""

    kl: float
    hidden: Tensor
    vectors: dict[str, Tensor]


@torch.no_grad()
def divergence(student: Head, teacher: Head, x: Tensor, target: Tensor) -> float:
    """Σ KL in nats over the hidden states x of the packed model and `target` of the original,
    both ``[n, hidden]``."""
    total = 0.0
    for mine, theirs in _chunks(x, target):
        log_q, log_p = student(mine).log_softmax(-1), teacher(theirs).log_softmax(-1)
        total += float(_kl(log_p, log_q).sum())
    return total


def kl_gradient(
    student: Head, teacher: Head, x: Tensor, target: Tensor, dtype: torch.dtype
) -> KlGradient:
    """The mean of `divergence` with its gradients: (q − p) / n at the logits.

    Logits are multiplied in float32, their gradient back through the head in `dtype`.
    """
    back = student.output.to(dtype)
    leaves = {role: v.detach().requires_grad_() for role, v in student.vectors.items()}
    student = student.with_vectors(leaves)
    inner = [role for role in leaves if role != LOGITS_BIAS]  # the vectors of the norm
    total, hidden = 0.0, torch.empty_like(x)
    vectors = {role: torch.zeros_like(v) for role, v in student.vectors.items()}
    parts = torch.split(hidden, TOKENS_AT_ONCE)
    for out, (mine, theirs) in zip(parts, _chunks(x, target), strict=True):
        mine = mine.detach().requires_grad_()
        with torch.enable_grad():
            normed = student.normalize(mine)
        with torch.no_grad():
            logits = student.logits(normed)
            log_q = logits.log_softmax(-1)
            log_p = teacher(theirs).log_softmax(-1)
            total += float(_kl(log_p, log_q).sum())
            at_logits = log_q.exp_().sub_(log_p.exp_()).div_(len(x))
            at_product = at_logits * slope(logits, student.dimensions)
            at_norm = (at_product.to(dtype) @ back).float()
        at_x, *at_inner = torch.autograd.grad(
            normed, [mine, *(leaves[role] for role in inner)], at_norm
        )
        out.copy_(at_x)
        for role, gradient in zip(inner, at_inner, strict=True):
            vectors[role] += gradient
        if LOGITS_BIAS in vectors:
            vectors[LOGITS_BIAS] += at_product.sum(0)
    return KlGradient(total / len(x), hidden, vectors)


def _chunks(x: Tensor, target: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(*(torch.split(t, TOKENS_AT_ONCE) for t in (x, target)), strict=True)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL per token ``[n]``; summed in float64, because the terms of a KL of 1e-4 nearly cancel."""
    return wide(log_p.exp() * (log_p - log_q)).sum(-1)
