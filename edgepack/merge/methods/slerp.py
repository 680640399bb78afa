"""Spherical interpolation between a base and one model, as if the tensor were one vector.

Ken Shoemake, "Animating rotation with quaternion curves" (doi 10.1145/325334.325242):
(sin((1 − t)ω)·a + sin(tω)·b) / sin ω, where ω is the angle between a and b. As in mergekit, a and b
keep their lengths in this formula (only ω is that of unit vectors), t = 0 is the base, and the
interpolation is linear where |cos ω| is above 0.9995, for opposite vectors too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, gather, new_result, total, working_type
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

NEARLY_PARALLEL = 0.9995
TINY = 1e-8
"""A length that counts as 0."""
RUN = 1 << 20
"""Elements that are summed in one go, as in mergekit: so the last bits are the same at any size."""


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
    products = torch.empty(min(RUN, a.numel()), dtype=dtype)

    def sum_of(run: slice) -> Tensor:
        for block in blocks(run.stop - run.start):
            place = slice(run.start + block.start, run.start + block.stop)
            unit = a[place].to(dtype) / length_a
            torch.mul(unit, b[place].to(dtype) / length_b, out=products[block])
        return total(products[: run.stop - run.start])

    return gather(map(sum_of, blocks(a.numel(), RUN)), dtype).sum().clamp(-1, 1)


def _length(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The Euclidean norm, 1 where that is 0, in float64 where it overflows; 0-dim."""
    for kind in dict.fromkeys((dtype, torch.float64)):
        parts = (torch.linalg.vector_norm(x[run].to(kind)) for run in blocks(x.numel(), RUN))
        length = torch.linalg.vector_norm(gather(parts, kind))
        if length.isfinite():
            break
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
