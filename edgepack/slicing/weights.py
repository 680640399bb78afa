"""What becomes of a weight when the residual stream is rotated and only d of D coordinates kept.

Orthogonal rotations commute with n(x) = x/√(‖x‖²/D + ε), so what reads the stream behind a norm
with the gains γ becomes ``W·diag(γ)·Q``, what writes it ``QᵀW``, and the gains 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgepack.architectures.base import NORMS, START, WRITE

_ROWS = 8192  # at once in float64


def rotated(W: Tensor, role: str, Q: Tensor, gain: Tensor | None) -> Tensor:
    """A weight ``[out, in]`` (or a norm or bias) on the far side of Q ``[D, d]`` float64: the one
    it reads by (behind a norm of that `gain`) or writes by. Biases of readers and norms of heads
    stay. Computed in float64, returned as float32."""
    stem = role.partition(".")[0]
    if role in NORMS:
        return torch.ones(Q.shape[1])
    if stem in WRITE:
        return (Q.T @ W.double()).float()
    if role in START:
        return _by_rows(W, Q)
    return W if gain is None else _by_rows(W, gain.double()[:, None] * Q)


def narrowed(W: Tensor, role: str, Q: Tensor, gain: Tensor | None) -> Tensor:
    """`rotated`, for a stock norm of width d, which divides by √(‖y‖²/d + ε): writing everything
    c = √(d/D) smaller and gains of 1/c make up for that. So the result is a model of its family
    with a smaller hidden size, and the same model at d = D."""
    D, d = Q.shape
    c = math.sqrt(d / D)
    if role in NORMS:
        return torch.full((d,), 1 / c)
    writes = role in START or role.partition(".")[0] in WRITE
    return rotated(W, role, c * Q if writes else Q, gain)


def _by_rows(W: Tensor, Q: Tensor) -> Tensor:
    return torch.cat([(rows.double() @ Q).float() for rows in torch.split(W, _ROWS)])
