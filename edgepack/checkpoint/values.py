"""Weights as the forward pass takes them, from what Hugging Face's files store, and back.

Gains that are stored as γ − 1 become γ, and A_log of a gated delta net becomes −exp(A_log). The
value heads of a gated delta net are stored in groups, one for each key head: g0v0 g0v1 g1v0 g1v1.
llama.cpp takes them tiled: g0v0 g1v0 g0v1 g1v1. They are brought into that order here, before
anything is quantized, because blocks of a format along the columns of ssm_out must not be cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.base import Checkpoint, Dimensions

UNSHIFTED = frozenset({"ssm_norm"})
"""Norms whose gains no family stores as γ − 1."""

Order = tuple[int, Tensor]
"""A dimension of a weight, and for each index there the index in the file."""
VALUE_HEADS: dict[str, tuple[int, Callable[[Dimensions], tuple[int, int]]]] = {
    "ssm_qkv": (0, lambda d: (_keys(d), d.linear_value_head_dim)),
    "ssm_conv1d": (0, lambda d: (_keys(d), d.linear_value_head_dim)),
    "ssm_gate": (0, lambda d: (0, d.linear_value_head_dim)),
    "ssm_alpha": (0, lambda d: (0, 1)),
    "ssm_beta": (0, lambda d: (0, 1)),
    "ssm_a": (0, lambda d: (0, 1)),
    "ssm_dt.bias": (0, lambda d: (0, 1)),
    "ssm_out": (1, lambda d: (0, d.linear_value_head_dim)),
}
"""Role → the dimension that has value heads, and where they begin there and how wide each is."""


def _keys(d: Dimensions) -> int:
    """Rows of queries and keys, which come before the values."""
    return 2 * d.linear_num_key_heads * d.linear_key_head_dim


def order(d: Dimensions, role: str) -> Order | None:
    """The order of a weight's value heads; None if the file's is ours."""
    if role not in VALUE_HEADS or d.linear_num_value_heads == d.linear_num_key_heads:
        return None
    dimension, place = VALUE_HEADS[role]
    start, width = place(d)
    heads = torch.arange(d.linear_num_value_heads).view(d.linear_num_key_heads, -1).T.flatten()
    rows = (heads[:, None] * width + torch.arange(width)).flatten()
    return dimension, torch.cat([torch.arange(start), start + rows])


def from_hf(family: Architecture, d: Dimensions, role: str, stored: Tensor) -> Tensor:
    """A weight as the forward pass takes it, float32, from the values in the file."""
    value = stored.to(torch.float32)
    if shift := _shift(family, role):
        value = value + shift
    if role == "ssm_a":
        value = -value.exp()
    places = order(d, role)
    return value if places is None else value.index_select(*places)


def to_hf(family: Architecture, d: Dimensions, role: str, value: Tensor) -> Tensor:
    """The inverse of `from_hf`, up to rounding."""
    places = order(d, role)
    if places is not None:
        value = value.index_select(places[0], torch.argsort(places[1]))
    if role == "ssm_a":
        return (-value).log()
    shift = _shift(family, role)
    return value - shift if shift else value


def _shift(family: Architecture, role: str) -> float:
    """What is added to stored values."""
    shifted = role.endswith("_norm") and role not in UNSHIFTED
    return family.norm_shift if shifted else 0.0


def pair_to_hf(checkpoint: Checkpoint, name: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """lora_A ``[rank, in]`` and lora_B ``[out, rank]`` of a weight in Hugging Face's order."""
    return _reordered(checkpoint, name, A, B, torch.argsort)


def pair_from_hf(checkpoint: Checkpoint, name: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pair_to_hf`."""
    return _reordered(checkpoint, name, A, B, lambda places: places)


def _reordered(
    checkpoint: Checkpoint, name: str, A: Tensor, B: Tensor, turn: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    places = order(checkpoint.dimensions, checkpoint.specs[name].role)
    if places is None:
        return A, B
    dimension, rows = places
    return (A, B[turn(rows)]) if dimension == 0 else (A[:, turn(rows)], B)
