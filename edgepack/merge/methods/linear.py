"""Weighted means of weights (model soups).

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv 2203.05482), section 2: Σ θᵢ / n. With weights, as mergekit has it:
Σ wᵢθᵢ / Σ wᵢ, where `normalize` false leaves out the division.

Weights that cancel out have no mean. mergekit divides by their sum all the same, and gives infinite
values; here that is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, new_result, working_type
from edgepack.merge.methods.base import Job, Method, Parameter, Promise, Values


def merge(job: Job) -> Tensor:
    """Σ wᵢθᵢ, divided by Σ wᵢ if `normalize`."""
    dtype = working_type(job.tensors)
    weights = torch.tensor(job.numbers("weight"), dtype=dtype)
    divisor = weights.sum()
    result = new_result(job.tensors[0], dtype)
    out, inputs = flat(result), [flat(tensor) for tensor in job.tensors]
    for block in blocks(out.numel()):
        target = torch.mul(inputs[0][block].to(dtype), weights[0], out=out[block])
        for tensor, weight in zip(inputs[1:], weights[1:], strict=True):
            target.addcmul_(tensor[block].to(dtype), weight)  # rounds once, as mergekit does
        if job.parameters["normalize"]:
            target /= divisor
    return result


def check(of_models: Sequence[Values], whole: Values) -> str | None:
    """Weights that cancel out have no mean."""
    weights = [float(values["weight"]) for values in of_models]
    if whole["normalize"] and abs(sum(weights)) <= 1e-6 * max(map(abs, weights)):
        return "the weights sum to 0, and there is no such mean; change one, or normalize: false"
    return None


PLUGIN = Method(
    name="linear",
    function=merge,
    meaning="weighted mean of the weights",
    parameters=(
        Parameter("weight", float, "share of this model", of_model=True),
        Parameter("normalize", bool, "divide by the sum of the weights", default=True),
    ),
    check=check,
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
