"""Weighted sums of weights (model soups).

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv 2203.05482), section 2: Σ θᵢ / n. With weights, as mergekit has it:
Σ wᵢθᵢ / Σ wᵢ, where `normalize` false leaves out the division.

Weights that cancel out have no mean. mergekit divides by their sum all the same, and gives infinite
values; here that is an error.
"""

from __future__ import annotations

from torch import Tensor

from edgepack.errors import RecipeError
from edgepack.merge.methods._blocks import blocks, flat, new_result, working_type
from edgepack.merge.methods.base import Job, Method, Parameter, Promise


def merge(job: Job) -> Tensor:
    """Σ wᵢθᵢ, divided by Σ wᵢ if `normalize`."""
    weights = job.numbers("weight")
    dtype = working_type(job.tensors)
    total = sum(weights) if job.parameters["normalize"] else None
    if total is not None and abs(total) < 1e-12:
        raise RecipeError(
            f"{job.name}: the weights of linear sum to 0, and there is no such mean",
            hint="change a weight, or set `normalize: false`",
        )
    result = new_result(job.tensors[0], dtype)
    out, inputs = flat(result), [flat(tensor) for tensor in job.tensors]
    for block in blocks(out.numel()):
        target = out[block].zero_()
        for tensor, weight in zip(inputs, weights, strict=True):
            target += tensor[block].to(dtype) * weight
        if total is not None:
            target /= total
    return result


PLUGIN = Method(
    name="linear",
    merge=merge,
    meaning="weighted mean of the weights",
    parameters=(
        Parameter("weight", float, "share of this model", of_model=True),
        Parameter("normalize", bool, "divide by the sum of the weights", default=True),
    ),
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
