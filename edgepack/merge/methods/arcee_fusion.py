"""Arcee Fusion: the other model's values where its changes matter, the base's elsewhere. By Arcee
AI, without a paper.

The importance of an element is |θ₁ − θ₀| times the KL divergence of the softmax of its row from
that of the base's row. Elements with at least median + 1.5·(third − first quartile) are taken over.
mergekit estimates the quartiles of more than 1,000,000 elements from a random sample of that many;
here they are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softmax

from edgepack.merge.methods._blocks import (
    blocks,
    flat,
    new_result,
    row_blocks,
    row_sums,
    rows,
    working_type,
)
from edgepack.merge.methods._order import value_at
from edgepack.merge.methods.base import Base, Job, Method, Promise

EPS = 1e-8
"""Added to probabilities."""


def merge(job: Job) -> Tensor:
    """The importances are kept in the memory of the result until the threshold is known."""
    assert job.base is not None
    dtype = working_type([job.base, *job.tensors])
    result = new_result(job.base, dtype)
    _importances(rows(job.base), rows(job.tensors[0]), rows(result))
    out, base, other = flat(result), flat(job.base), flat(job.tensors[0])
    threshold = _threshold(out)
    for block in blocks(out.numel()):
        mask = (out[block] >= threshold).to(dtype)
        a = base[block].to(dtype)
        torch.add(a, (other[block].to(dtype) - a).mul_(mask), out=out[block])
    return result


def _importances(base: Tensor, other: Tensor, out: Tensor) -> None:
    for block in row_blocks(out):
        a, b = base[block].to(out.dtype), other[block].to(out.dtype)
        p, q = softmax(b, dim=-1).add_(EPS), softmax(a, dim=-1).add_(EPS)
        divergence = row_sums((p / q).log_().mul_(p))
        out[block] = (b - a).abs_().mul_(divergence)


def _threshold(importances: Tensor) -> Tensor:
    """Median + 1.5·(third − first quartile), each the element at that rank, rounded down."""
    elements = importances.numel()
    ranks = [int(share * (elements - 1)) for share in (0.25, 0.5, 0.75)]
    values = [value_at(lambda block: importances[block].float(), elements, rank) for rank in ranks]
    first, median, third = torch.tensor(values)
    threshold: Tensor = median + 1.5 * (third - first)
    return threshold


PLUGIN = Method(
    name="arcee_fusion",
    function=merge,
    meaning="the other model's values where its changes are important, the base's elsewhere",
    base=Base.REQUIRED,
    most=1,
    promises=frozenset({Promise.IDEMPOTENT}),
    temporaries=0,
)
