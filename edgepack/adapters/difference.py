"""The best pair lora_B · lora_A for the difference of two weights: a truncated SVD.

By Eckart and Young (1936) no other pair of that rank leaves a smaller ‖ΔW − B·A‖.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.adapters.adapter import Lora

NOISE = 1e-6
"""Singular values below this share of the largest are rounding of float32."""


@dataclass(frozen=True)
class Choice:
    """The rank of a pair: `rank`, or where `energy` is given the least rank that keeps that share
    of ‖ΔW‖², at most `rank`; never one with singular values of at most `epsilon`. `even`: √σ on
    either side, else σ is in lora_A."""

    rank: int
    energy: float | None = None
    epsilon: float = 0.0
    even: bool = True


def factor(delta: Tensor, choice: Choice) -> Lora:
    """The pair for ΔW ``[out, in]``, float32. ΔW may not be zero. The rank is 0 if no singular
    value is above `Choice.epsilon`.

    Singular vectors are eigenvectors of the smaller of ΔΔᵀ and ΔᵀΔ, in float64.
    """
    wide = delta.shape[0] <= delta.shape[1]
    D = delta.double() if wide else delta.double().T
    values, vectors = torch.linalg.eigh(D @ D.T)
    values = values.flip(0).clamp_min(0)
    rank = _rank(values, choice)
    left = vectors.flip(1)[:, :rank]
    root = values[:rank].sqrt().sqrt()
    B, A = (left * root).float(), ((left.T @ D) / root[:, None]).float()
    pair = Lora(A, B) if wide else Lora(B.T.contiguous(), A.T.contiguous())
    if choice.even:
        return pair
    scale = root.float()
    return Lora(pair.lora_A * scale[:, None], pair.lora_B / scale)


def _rank(values: Tensor, choice: Choice) -> int:
    """The rank for eigenvalues of ΔΔᵀ, the largest first."""
    least = max(NOISE**2 * float(values[0]), choice.epsilon**2)
    rank = min(choice.rank, int((values > least).sum()))
    if choice.energy is None:
        return rank
    shares = values.cumsum(0) / values.sum()
    return min(rank, 1 + int((shares < choice.energy).sum()))
