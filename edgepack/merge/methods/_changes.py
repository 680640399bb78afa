"""The sum of changes that `ram` and `ramplus_tl` have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, new_result
from edgepack.merge.methods._task_vectors import task_vectors
from edgepack.merge.methods.base import Job, Parameter

EPSILON = Parameter("epsilon", float, "a difference up to this is no change", 1e-5, least=0)


def merge(job: Job, factors: Sequence[float]) -> Tensor:
    """θ₀ + fᵢτᵢ where one model changes an element, θ₀ + the mean change where several do."""
    assert job.base is not None
    vectors, epsilon = task_vectors(job), float(job.parameters["epsilon"])
    dtype, base = vectors[0].dtype, vectors[0].base
    result = new_result(job.base, dtype)
    out = flat(result)
    for block in blocks(out.numel()):
        deltas = [vector.block(block) for vector in vectors]
        changed = [(delta.abs() > epsilon).to(dtype) for delta in deltas]
        count = changed[0].clone()
        for other in changed[1:]:
            count += other
        alone = count == 1
        count.clamp_(min=1)
        mixed = torch.zeros_like(count)
        for delta, mask, factor in zip(deltas, changed, factors, strict=True):
            delta *= mask
            if factor != 1:
                delta = torch.where(alone, delta * factor, delta)
            mixed += delta.div_(count)
        torch.add(base[block].to(dtype), mixed, out=out[block])
    return result
