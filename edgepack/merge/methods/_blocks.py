"""Tensors a block at a time: temporaries of element-wise arithmetic then stay in a core's cache,
and need no memory to speak of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Elements in a block: 1 MiB of float32. Large enough that a call's cost does not matter."""


def working_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def new_result(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a result, not initialised."""
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def flat(tensor: Tensor) -> Tensor:
    """All elements in one dimension; no copy unless strides demand one."""
    return tensor.detach().reshape(-1)


def blocks(elements: int) -> Iterator[slice]:
    """Slices that cover a flat tensor."""
    for start in range(0, elements, BLOCK):
        yield slice(start, min(start + BLOCK, elements))
