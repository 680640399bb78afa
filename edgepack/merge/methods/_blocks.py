"""Tensors a block at a time, and sums that come out the same on any number of threads.

Temporaries of element-wise arithmetic then stay in a core's cache and need no memory to speak of.
torch splits operations of 32768 elements and more among its threads. Blocks are smaller, so that
one thread does all of them: on a busy machine, waiting for the others costs more than they help.
Several tensors can be merged at the same time instead.

A long sum that is split has last bits that depend on the number of threads. The sum of two rows is
split between the rows, and each is what one thread computes (`total`). Norms are not split. Above
`WHOLE` elements, the sums of blocks are added in float64: more exact than mergekit's float32 sums
over whole tensors, from which results then differ in the last bits or, where angles between nearly
parallel vectors count (`multislerp`), by some 1e-5 of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 511 * 64
"""Elements in a block: just below 32768, 128 KiB of float32."""
WHOLE = 1 << 18
"""Elements that are summed as mergekit sums them: bit by bit what it computes with one thread."""


def working_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def new_result(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a result, not initialised."""
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def flat(tensor: Tensor) -> Tensor:
    """All elements in one dimension; no copy unless strides demand one."""
    return tensor.detach().reshape(-1)


def rows(tensor: Tensor) -> Tensor:
    """As a matrix: rows are along the last dimension, a vector is one row."""
    return tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)


def blocks(elements: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover a flat tensor."""
    for start in range(0, elements, size):
        yield slice(start, min(start + size, elements))


def _runs(elements: int) -> Iterator[slice]:
    """What is summed at once."""
    return blocks(elements, WHOLE if elements <= WHOLE else BLOCK)


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of a matrix, of about `BLOCK` elements, one row at least."""
    return blocks(matrix.shape[0], max(1, BLOCK // max(1, matrix.shape[1])))


def total(x: Tensor) -> Tensor:
    """The sum of a flat tensor as one thread computes it; 0-dim."""
    return x.expand(2, -1).sum(1)[0]


def row_sums(matrix: Tensor) -> Tensor:
    """The sum of each row, [rows, 1]; the same on any number of threads."""
    if matrix.shape[0] == 1:
        return total(matrix[0]).reshape(1, 1)
    return matrix.sum(dim=-1, keepdim=True)


def gather(parts: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """0-dim tensors as one vector, with the same bits. Kept as tensors, the small ones would lie
    among the large ones that are freed, whose memory could then not be used again."""
    return torch.tensor([float(part) for part in parts], dtype=dtype)


def add_up(
    elements: int, dtype: torch.dtype, part: Callable[[slice, torch.dtype], Tensor]
) -> Tensor:
    """Σ over all elements of what `part` says of a block in a type, as a 0-dim tensor of `dtype`.

    Where that overflows, the sum is computed again in float64, and is a float64.
    """
    for kind in dict.fromkeys((dtype, torch.float64)):
        sums = gather((total(part(block, kind)) for block in _runs(elements)), kind)
        result = sums[0] if len(sums) == 1 else sums.double().sum().to(kind)
        if result.isfinite():
            break
    return result


def norm(elements: int, dtype: torch.dtype, part: Callable[[slice, torch.dtype], Tensor]) -> Tensor:
    """The Euclidean norm over all blocks, with the types of `add_up`."""
    for kind in dict.fromkeys((dtype, torch.float64)):
        norms = gather(
            (torch.linalg.vector_norm(part(block, kind)) for block in _runs(elements)), kind
        )
        result = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms.double()).to(kind)
        if result.isfinite():
            break
    return result
