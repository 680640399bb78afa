"""One rotation of the whole residual stream, of which the first d of D coordinates are kept.

With n(x) = x/√(‖x‖²/D + ε), an orthogonal Q commutes: n(xQ) = n(x)Q. A norm of width d divides by
√(‖y‖²/d + ε) instead; writing everything c = √(d/D) smaller makes up for that, and its gains are
1/c. So the result is a model of its family with a smaller hidden size, and exact at d = D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgepack.architectures._base import NORMS, READ_BEHIND, WRITE

_ROWS = 8192  # at once in float64


def narrowed(W: Tensor, role: str, Q: Tensor, gain: Tensor | None) -> Tensor:
    """What becomes of a weight: ``c·E·Q`` of the embeddings, ``W·diag(γ)·Q`` of what reads the
    stream behind a norm with the gains γ, ``c·QᵀW`` of what writes it, 1/c of the norms; biases of
    readers and norms of heads stay. W ``[out, in]``, Q ``[D, d]`` float64; float32.
    """
    D, d = Q.shape
    c, stem = math.sqrt(d / D), role.partition(".")[0]
    if role in NORMS:
        return torch.full((d,), 1 / c)
    if stem in WRITE:
        return (c * (Q.T @ W.double())).float()
    if role == "token_embd":
        return _by_rows(W, c * Q)
    if role in READ_BEHIND and gain is not None:
        return _by_rows(W, gain.double()[:, None] * Q)
    return W


def _by_rows(W: Tensor, Q: Tensor) -> Tensor:
    return torch.cat([(rows.double() @ Q).float() for rows in torch.split(W, _ROWS)])
