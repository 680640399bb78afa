"""Model Stock: "Model Stock: All we need is just a few fine-tuned models" (arXiv 2403.19522):
t·θ_avg + (1 − t)·θ₀ with t = N·cos θ / (1 + (N − 1)·cos θ), where θ is the angle
between the differences of two models to the base.

The paper takes layers as vectors; mergekit and this take whole tensors, or with `filter_wise` their
rows. For more than two models, cos θ is the mean over pairs. Where the denominator is 0, the result
is the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import (
    add_up,
    blocks,
    flat,
    new_result,
    norm,
    row_blocks,
    row_sums,
    rows,
    working_type,
)
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

TINY = 1e-6
"""The product of two lengths counts as this at least; a denominator below it as 0."""


def merge(job: Job) -> Tensor:
    """Two passes over whole tensors; one by rows."""
    assert job.base is not None
    dtype = working_type([job.base, *job.tensors])
    result = new_result(job.base, dtype)
    if job.parameters["filter_wise"]:
        out, base, tensors = rows(result), rows(job.base), [rows(x) for x in job.tensors]
        for block in row_blocks(out):
            t = _ratio(_cosines_by_row(tensors, base, block, dtype), len(tensors))
            _mix(out, base, tensors, block, t)
        return result
    out, base, tensors = flat(result), flat(job.base), [flat(x) for x in job.tensors]
    t = _ratio(_cosines(tensors, base, dtype), len(tensors)).to(dtype)
    for block in blocks(out.numel()):
        _mix(out, base, tensors, block, t)
    return result


def _cosines(tensors: list[Tensor], base: Tensor, dtype: torch.dtype) -> Iterable[Tensor]:
    """That of each pair of differences to the base, [1]."""

    def offset(x: Tensor, block: slice, kind: torch.dtype) -> Tensor:
        return x[block].to(kind) - base[block].to(kind)

    def product(x: Tensor, y: Tensor, block: slice, kind: torch.dtype) -> Tensor:
        return offset(x, block, kind).mul_(offset(y, block, kind))

    lengths = [norm(base.numel(), dtype, partial(offset, x)) for x in tensors]
    for i, j in combinations(range(len(tensors)), 2):
        dot = add_up(base.numel(), dtype, partial(product, tensors[i], tensors[j]))
        yield _cosine(dot, lengths[i], lengths[j]).reshape(1)


def _cosines_by_row(
    tensors: list[Tensor], base: Tensor, block: slice, dtype: torch.dtype
) -> Iterable[Tensor]:
    """That of each pair of differences, row by row, [rows, 1]."""
    offsets = [x[block].to(dtype) - base[block].to(dtype) for x in tensors]
    lengths = [torch.linalg.vector_norm(offset, dim=-1) for offset in offsets]
    for i, j in combinations(range(len(tensors)), 2):
        dot = row_sums(offsets[i] * offsets[j])[:, 0]
        yield _cosine(dot, lengths[i], lengths[j])[:, None]


def _cosine(dot: Tensor, length: Tensor, other_length: Tensor) -> Tensor:
    return (dot / (length * other_length).clamp(min=TINY)).clamp(-1, 1)


def _ratio(cosines: Iterable[Tensor], models: int) -> Tensor:
    """t, from the mean of the cosines."""
    cosine = torch.stack(list(cosines)).mean(dim=0)
    denominator = 1 + (models - 1) * cosine
    singular = denominator.abs() < TINY
    t = models * cosine / torch.where(singular, 1, denominator)
    return torch.where(singular, 0, t)


def _mix(out: Tensor, base: Tensor, tensors: list[Tensor], block: slice, t: Tensor) -> None:
    average = tensors[0][block].to(out.dtype, copy=True)
    for tensor in tensors[1:]:
        average += tensor[block].to(out.dtype)
    average /= len(tensors)
    torch.mul(average, t, out=out[block])
    out[block] += base[block].to(out.dtype) * (1 - t)


PLUGIN = Method(
    name="model_stock",
    function=merge,
    meaning="the point between base and mean that the models' angles suggest",
    base=Base.REQUIRED,
    fewest=2,
    parameters=(Parameter("filter_wise", bool, "an angle for each row", False),),
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
