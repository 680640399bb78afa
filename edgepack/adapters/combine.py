"""Several adapters as one, with the semantics of PEFT's ``add_weighted_adapter``.

With pairs BᵢAᵢ and scales sᵢ, ``cat`` is Σ sᵢBᵢAᵢ exactly, of the sum of the ranks; ``svd`` is its
best approximation of a smaller rank. ``linear`` is (Σ √sᵢBᵢ)(Σ √sᵢAᵢ): it has cross terms and needs
equal ranks. ``ties`` (arXiv 2306.01708) is ``linear`` on the largest values of every factor, whose
signs are elected: values of the minority are left out, and means are taken over those that remain.
The election is among values with alpha / rank in them. (PEFT's is among those without, which is the
same where the adapters have one alpha / rank.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from edgepack.adapters.adapter import Adapter, Lora
from edgepack.core.linalg import product_svd
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError

Method = Literal["cat", "svd", "linear", "ties"]
METHODS: tuple[Method, ...] = ("cat", "svd", "linear", "ties")
DENSITY = 0.2
"""Share of values that TIES keeps of every factor; that of the paper's experiments."""

Parts = Sequence[tuple[Lora, float]]
"""The pairs of one weight, with their scales."""


def combine(
    adapters: Sequence[tuple[Adapter, float]],
    method: Method = "cat",
    *,
    rank: int | None = None,
    density: float = DENSITY,
) -> Adapter:
    """One adapter of the same base. A weight that only some of them change is combined from those.
    `rank` is for ``svd`` (default: the largest of the weight's pairs), `density` for ``ties``."""
    if not adapters:
        raise ValueError("no adapters")
    first = adapters[0][0]
    if any(adapter.base.digest != first.base.digest for adapter, _ in adapters):
        raise EdgepackError(
            "the adapters belong to different bases", hint="combine those of one packed model"
        )
    if not 0 < density <= 1:
        raise EdgepackError(f"density {density} is no share", hint="above 0, at most 1")
    by_method: Mapping[Method, Callable[[Parts], Lora]] = {
        "cat": cat,
        "svd": partial(svd, rank=rank),
        "linear": linear,
        "ties": partial(ties, density=density),
    }
    names = dict.fromkeys(name for adapter, _ in adapters for name in adapter.weights)
    weights = {}
    for name in names:
        parts = [(a.weights[name], scale) for a, scale in adapters if name in a.weights]
        if method in ("linear", "ties"):
            _check_ranks(name, parts, method)
        weights[name] = by_method[method](parts)
    about = {"mode": f"combined ({method})", "scales": [scale for _, scale in adapters]}
    notes = tuple(dict.fromkeys(note for adapter, _ in adapters for note in adapter.notes))
    return Adapter(weights, first.base, about, notes)


def cat(parts: Parts) -> Lora:
    """Σ sᵢBᵢAᵢ, of the sum of the ranks."""
    return Lora.joined([lora.scaled(scale) for lora, scale in parts])


def svd(parts: Parts, rank: int | None = None) -> Lora:
    """The best approximation of Σ sᵢBᵢAᵢ of rank `rank`, in the Frobenius norm; singular values are
    in lora_B. Computed from the factors: ΔW is never made."""
    joined = cat(parts)
    U, S, Vh = product_svd(joined.lora_B, joined.lora_A)
    kept = rank or max(lora.rank for lora, _ in parts)
    return Lora(Vh[:kept], U[:, :kept] * S[:kept])


def linear(parts: Parts) -> Lora:
    """(Σ √sᵢBᵢ)·(Σ √sᵢAᵢ); the sign of a negative scale is on Aᵢ."""
    return Lora(*(_sum(tensors, scales) for tensors, scales in _factors(parts)))


def ties(parts: Parts, density: float = DENSITY) -> Lora:
    """`linear` with TIES in place of the sums."""
    return Lora(*(_elected(tensors, scales, density) for tensors, scales in _factors(parts)))


def _factors(parts: Parts) -> list[tuple[list[Tensor], list[float]]]:
    """All lora_A with their scales, all lora_B with theirs."""
    roots = [math.sqrt(abs(scale)) for _, scale in parts]
    signed = [math.copysign(root, scale) for root, (_, scale) in zip(roots, parts, strict=True)]
    return [
        ([lora.lora_A for lora, _ in parts], signed),
        ([lora.lora_B for lora, _ in parts], roots),
    ]


def _sum(tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    return torch.stack([t * s for t, s in zip(tensors, scales, strict=True)]).sum(0)


def _elected(tensors: Sequence[Tensor], scales: Sequence[float], density: float) -> Tensor:
    """TIES: each tensor's largest values; per element the sign of their sum; the scaled values of
    that sign, divided by their number."""
    kept = torch.stack([_largest(tensor, density) for tensor in tensors])
    sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = kept.sign() == sign
    scaled = kept * torch.tensor(scales)[:, None, None]
    return (scaled * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(tensor: Tensor, density: float) -> Tensor:
    """The share `density` of values that are largest; the others are 0."""
    if density >= 1:
        return tensor
    mask = torch.zeros(tensor.numel())
    mask[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * mask.reshape(tensor.shape)


def _check_ranks(name: str, parts: Parts, method: str) -> None:
    ranks = [lora.rank for lora, _ in parts]
    if len(set(ranks)) > 1:
        raise EdgepackError(
            f"{method}: {shorten(name, 80)} has ranks {', '.join(map(str, ranks))}, which differ",
            hint="use --method svd or cat",
        )
