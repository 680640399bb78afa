"""KL(original ‖ packed) of next-token distributions, and its gradient at the last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.decoder import Head, rms_norm

TOKENS_AT_ONCE = 256
"""Logits of so many tokens are in memory, of both models."""


@dataclass(frozen=True)
class Pull:
    """Mean KL in nats a token, and its gradient at hidden states ``[n, hidden]`` and at the final
    norm's gain ``[hidden]``."""

    kl: float
    hidden: Tensor
    norm: Tensor


@torch.no_grad()
def divergence(student: Head, teacher: Head, x: Tensor, target: Tensor) -> float:
    """Σ KL in nats over the hidden states x of the packed model and `target` of the original,
    both ``[n, hidden]``."""
    total = 0.0
    for mine, theirs in _chunks(x, target):
        log_q, log_p = student(mine).log_softmax(-1), teacher(theirs).log_softmax(-1)
        total += float(_kl(log_p, log_q).sum())
    return total


def pull(student: Head, teacher: Head, x: Tensor, target: Tensor, dtype: torch.dtype) -> Pull:
    """The mean of `divergence` with its gradients: (q − p) / n at the logits.

    Logits are multiplied in float32, their gradient back through the head in `dtype`.
    """
    back = student.output.to(dtype)
    total, norm, hidden = 0.0, torch.zeros_like(student.norm), torch.empty_like(x)
    parts = torch.split(hidden, TOKENS_AT_ONCE)
    for out, (mine, theirs) in zip(parts, _chunks(x, target), strict=True):
        leaves = mine.detach().requires_grad_(), student.norm.detach().requires_grad_()
        with torch.enable_grad():
            normed = rms_norm(*leaves, student.eps, student.of)
        with torch.no_grad():
            log_q = (normed @ student.output.T).log_softmax(-1)
            log_p = teacher(theirs).log_softmax(-1)
            total += float(_kl(log_p, log_q).sum())
            at_logits = log_q.exp_().sub_(log_p.exp_()).div_(len(x))
            at_norm = (at_logits.to(dtype) @ back).float()
        gradients = torch.autograd.grad(normed, leaves, at_norm)
        out.copy_(gradients[0])
        norm += gradients[1]
    return Pull(total / len(x), hidden, norm)


def _chunks(x: Tensor, target: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(*(torch.split(t, TOKENS_AT_ONCE) for t in (x, target)), strict=True)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Per token ``[n]``; float64 sums, for a KL of 1e-4 is made of terms of either sign."""
    return (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)
