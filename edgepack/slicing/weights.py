"""Weights for a residual stream that is rotated and keeps d of its D coordinates.

Orthogonal rotations commute with n(x) = x/√(‖x‖²/D + ε). So a weight that reads the stream after a
norm with the gains γ becomes ``W·diag(γ)·Q``, one that writes it ``QᵀW``, and the gains become 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgepack.architectures.base import NORMS, START, WRITE

_ROWS = 8192  # rows at once in float64


def rotate_weight(W: Tensor, role: str, Q: Tensor, gain: Tensor | None) -> Tensor:
    """A weight ``[out, in]`` (or norm, or bias) in the basis Q ``[D, d]`` float64 of the stream
    that it reads (after a norm of that `gain`) or writes. Biases of readers and norms of heads do
    not change. Computed in float64, returned as float32."""
    stem = role.partition(".")[0]
    if role in NORMS:
        return torch.ones(Q.shape[1], device=Q.device)
    if stem in WRITE:
        return (Q.T @ W.double()).float()
    if role in START:
        return _by_rows(W, Q)
    return W if gain is None else _by_rows(W, gain.double()[:, None] * Q)


def slice_weight(W: Tensor, role: str, Q: Tensor, gain: Tensor | None) -> Tensor:
    """`rotate_weight`, for a stock norm of width d, which divides by √(‖y‖²/d + ε). Writers are
    scaled by c = √(d/D), and gains of 1/c undo that. So the result is a model of its family with a
    smaller hidden size, and the same model at d = D."""
    D, d = Q.shape
    c = math.sqrt(d / D)
    if role in NORMS:
        return torch.full((d,), 1 / c, device=Q.device)
    writes = role in START or role.partition(".")[0] in WRITE
    return rotate_weight(W, role, c * Q if writes else Q, gain)


def _by_rows(W: Tensor, Q: Tensor) -> Tensor:
    return torch.cat([(rows.double() @ Q).float() for rows in torch.split(W, _ROWS)])
