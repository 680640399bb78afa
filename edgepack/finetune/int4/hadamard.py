"""The domain that the Hadamard quantizer rounds in (arXiv 2306.11987, section 3.3).

H = BlockDiag(H_k, …, H_k) with H_k ``[2^k, 2^k]`` spreads an outlier over 2^k columns. It cancels
in a product: x Wᵀ = (xH)(WH)ᵀ ≈ s_x s_W int(xH) int(WH)ᵀ.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from edgepack.core.hadamard import hadamard
from edgepack.finetune.int4.lsq import codes, initial_step

LARGEST_BLOCK = 1024
"""Blocks are 1, 2, 4, … 1024 columns wide, the paper's candidates."""
_AT_ONCE = 64
"""Widest block that is one product; H of a wider one is a Kronecker product of two (2 to 5 times
faster at 1024)."""
_INNER = 32


@lru_cache(maxsize=16)
def block_matrix(block: int) -> Tensor:
    """H_k, float32 ``[block, block]``, for a power of two. It is symmetric and its own inverse."""
    return hadamard(block).float()


def rotate(x: Tensor, block: int) -> Tensor:
    """x · BlockDiag(H_k, …, H_k) for x ``[n, m]`` and a block that divides m. Twice gives x."""
    if block == 1:
        return x
    if block <= _AT_ONCE:
        return (x.reshape(-1, block) @ block_matrix(block).to(x)).reshape(x.shape)
    outer = block // _INNER
    inside = rotate(x, _INNER).reshape(-1, outer, _INNER).transpose(1, 2)
    across = inside.reshape(-1, outer) @ block_matrix(outer).to(x)
    return across.reshape(-1, _INNER, outer).transpose(1, 2).reshape(x.shape)


def block_sizes(width: int) -> list[int]:
    """The powers of two up to `LARGEST_BLOCK` that divide the width, smallest first."""
    powers = [2**k for k in range(LARGEST_BLOCK.bit_length())]
    return [block for block in powers if width % block == 0]


@torch.no_grad()
def choose_block(x: Tensor, W: Tensor, bits: int) -> int:
    """The block size with the least ‖x̄ − x‖·‖W̄ − W‖, for x ``[n, m]`` and W ``[out, m]``; bars
    are values after rounding in the domain of H. The smaller one if two are equal."""

    def error(block: int) -> float:
        return _rounding_error(x, block, bits) * _rounding_error(W, block, bits)

    return min(block_sizes(x.shape[1]), key=error)


def _rounding_error(x: Tensor, block: int, bits: int) -> float:
    """‖x̄ − x‖, computed in the domain of H, which keeps norms."""
    x = rotate(x, block)
    step = initial_step(x, bits)
    return float((step * codes(x, step, bits) - x).norm())
