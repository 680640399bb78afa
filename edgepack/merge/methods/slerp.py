"""Spherical interpolation between a base and one model, as if the tensor were one vector.

Ken Shoemake, "Animating rotation with quaternion curves" (doi 10.1145/325334.325242):
(sin((1 − t)ω)·a + sin(tω)·b) / sin ω, where ω is the angle between a and b. As in mergekit, a and b
keep their lengths in this formula (only ω is that of unit vectors), t = 0 is the base, and the
interpolation is linear where |cos ω| is above 0.9995, for opposite vectors too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import add_up, blocks, flat, new_result, norm, working_type
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

NEARLY_PARALLEL = 0.9995
TINY = 1e-8
"""A length that counts as 0."""


def merge(job: Job) -> Tensor:
    """Two passes: the angle, then the sum."""
    assert job.base is not None
    dtype = working_type([job.base, *job.tensors])
    a, b = flat(job.base), flat(job.tensors[0])
    t = torch.tensor(float(job.parameters["t"]), dtype=dtype)
    of_a, of_b = _coefficients(t, _cosine(a, b, dtype))
    result = new_result(job.base, dtype)
    out = flat(result)
    for block in blocks(out.numel()):
        target = torch.mul(a[block].to(dtype), of_a, out=out[block])
        target += b[block].to(dtype) * of_b
    return result


def _cosine(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """That of the angle between two vectors; 0-dim. A vector of length 0 is at right angles."""
    length_a, length_b = _length(a, dtype), _length(b, dtype)

    def product(block: slice, kind: torch.dtype) -> Tensor:
        return (a[block].to(kind) / length_a).mul_(b[block].to(kind) / length_b)

    return add_up(a.numel(), dtype, product).clamp(-1, 1).to(dtype)


def _length(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The Euclidean norm, 1 where that is 0; 0-dim."""
    length = norm(x.numel(), dtype, lambda block, kind: x[block].to(kind))
    length = torch.linalg.vector_norm(length.reshape(1))  # mergekit does so, and rounds once more
    return length if length > TINY else torch.ones_like(length)


def _coefficients(t: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of both vectors."""
    if cosine.abs() > NEARLY_PARALLEL:
        return 1 - t, t
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    return torch.sin((1 - t) * angle) / sine, torch.sin(t * angle) / sine


PLUGIN = Method(
    name="slerp",
    function=merge,
    meaning="spherical interpolation from the base to one model",
    base=Base.REQUIRED,
    most=1,
    parameters=(Parameter("t", float, "0 is the base, 1 the other model"),),
    promises=frozenset({Promise.IDEMPOTENT}),
    temporaries=0,
)
