"""Spherical interpolation of two models, or of their differences to a base; as one vector, or row
by row. By mergekit, without a paper; the formula is that of `slerp`.

The place on the arc is w₂ / (w₁ + w₂), ½ where that sum is 0 (below 1e-6). `nuslerp_flatten` false
takes the vectors along the last dimension, and `nuslerp_row_wise` then those along the first one.
Those names are mergekit's: what is called row-wise makes columns of a matrix the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import (
    BLOCK,
    add_up,
    blocks,
    flat,
    new_result,
    norm,
    total,
    working_type,
)
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

TINY = 1e-7
"""Vectors are divided by this at least to have length 1."""
PARALLEL = 1e-16
"""A squared sine up to this is that of parallel vectors, which are interpolated linearly."""


def merge(job: Job) -> Tensor:
    """θ₀ + slerp(θ₁ − θ₀, θ₂ − θ₀), or slerp(θ₁, θ₂) without a base."""
    first, second = job.numbers("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    tensors = [*job.tensors, *([] if job.base is None else [job.base])]
    dtype = working_type(tensors)
    result = new_result(tensors[0], dtype)
    if job.parameters["nuslerp_flatten"]:
        _as_one_vector([flat(x) for x in tensors], flat(result), t)
    else:
        axis = 0 if job.parameters["nuslerp_row_wise"] else -1
        _by_vectors([_matrix(x, axis) for x in tensors], _matrix(result, axis), t)
    return result


def _matrix(tensor: Tensor, axis: int) -> Tensor:
    """A view with the vectors as the last dimension."""
    return tensor.detach().reshape(1) if tensor.dim() < 1 else tensor.detach().transpose(axis, -1)


def _reader(tensors: list[Tensor]) -> Callable[[int, slice, torch.dtype], Tensor]:
    """Blocks of both vectors, less the third tensor if there is one."""

    def read(which: int, block: slice, dtype: torch.dtype) -> Tensor:
        values = tensors[which][block].to(dtype)
        return values - tensors[2][block].to(dtype) if len(tensors) > 2 else values

    return read


def _as_one_vector(tensors: list[Tensor], out: Tensor, t: float) -> None:
    read, elements, dtype = _reader(tensors), out.numel(), out.dtype
    lengths = [norm(elements, dtype, partial(read, which)).clamp(min=TINY) for which in (0, 1)]

    def product(block: slice, kind: torch.dtype) -> Tensor:
        units = [read(which, block, kind) / lengths[which] for which in (0, 1)]
        return units[0].mul_(units[1])

    cosine = add_up(elements, dtype, product).clamp(-1, 1)
    for block in blocks(elements):
        a, b = (read(which, block, dtype) for which in (0, 1))
        value = _interpolate(a, b, cosine.to(dtype), t)
        _store(value, tensors, out, block)


def _by_vectors(tensors: list[Tensor], out: Tensor, t: float) -> None:
    whole = out if out.dim() > 1 else out[None]
    tensors = [x if x.dim() > 1 else x[None] for x in tensors]
    read = _reader(tensors)
    step = max(1, BLOCK // max(1, whole[0].numel()))
    for block in blocks(whole.shape[0], step):
        a, b = (read(which, block, out.dtype) for which in (0, 1))
        units = [
            x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=TINY) for x in (a, b)
        ]
        cosine = _sum_last(units[0] * units[1]).clamp(-1, 1)
        _store(_interpolate(a, b, cosine, t), tensors, whole, block)


def _sum_last(x: Tensor) -> Tensor:
    """Over the last dimension, the same on any number of threads."""
    one_vector = x.numel() == x.shape[-1]
    return total(x.flatten()).reshape(x[..., :1].shape) if one_vector else x.sum(-1, keepdim=True)


def _interpolate(a: Tensor, b: Tensor, cosine: Tensor, t: float) -> Tensor:
    parallel = 1 - cosine.square() <= PARALLEL
    angle = torch.acos(torch.where(parallel, 0, cosine))
    value = a * torch.sin((1 - t) * angle)
    value += b * torch.sin(t * angle)
    value /= torch.sin(angle)
    return torch.where(parallel, (1 - t) * a + t * b, value) if parallel.any() else value


def _store(value: Tensor, tensors: list[Tensor], out: Tensor, block: slice) -> None:
    out[block] = tensors[2][block].to(out.dtype) + value if len(tensors) > 2 else value


PLUGIN = Method(
    name="nuslerp",
    function=merge,
    meaning="spherical interpolation of two models, or of their differences to a base",
    base=Base.OPTIONAL,
    fewest=2,
    most=2,
    parameters=(
        Parameter("weight", float, "share of this model", of_model=True),
        Parameter("nuslerp_flatten", bool, "take the tensor as one vector", True),
        Parameter("nuslerp_row_wise", bool, "vectors are columns, if not flattened", False),
    ),
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
