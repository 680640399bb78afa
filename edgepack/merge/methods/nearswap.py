"""NearSwap: the other model's values where they are near the base's, and fractions of the way where
they are not. By alchemonaut (model card of QuartetAnemoi-70B-t0.0001), without a paper.

w = min(1, t / |θ₀ − θ₁|), the result is w·θ₁ + (1 − w)·θ₀: nothing moves further than t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, new_result, working_type
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

NEAREST = 1e-6
"""Differences count as this at least."""


def merge(job: Job) -> Tensor:
    """w·θ₁ + (1 − w)·θ₀."""
    assert job.base is not None
    dtype = working_type([job.base, *job.tensors])
    t = float(job.parameters["t"])
    result = new_result(job.base, dtype)
    out, base, other = flat(result), flat(job.base), flat(job.tensors[0])
    for block in blocks(out.numel()):
        a, b = base[block].to(dtype), other[block].to(dtype)
        w = (a - b).abs_().clamp_(min=NEAREST).reciprocal_().mul_(t).clamp_(0, 1)
        torch.mul(w, b, out=out[block])
        out[block] += w.neg_().add_(1).mul_(a)
    return result


PLUGIN = Method(
    name="nearswap",
    function=merge,
    meaning="moves each value of the base towards the other model's, by t at most",
    base=Base.REQUIRED,
    most=1,
    parameters=(Parameter("t", float, "how far a value moves at most", least=0),),
    promises=frozenset({Promise.IDEMPOTENT}),
    temporaries=0,
)
