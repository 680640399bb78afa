"""SCE ("Select, Calculate, Erase"): "FuseChat: Knowledge Fusion of Chat Models" (arXiv 2408.07990).
Keep the elements that vary most between the models' task vectors, weight each model by the
mean square of what it keeps, leave out signs of the minority, and average.

The paper selects by variance in each "parameter matrix"; the share is of elements whose variance is
not 0, as in mergekit. Signs are elected by unweighted sums, and zero counts as +.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import add_up, blocks, flat, new_result
from edgepack.merge.methods._order import cuts
from edgepack.merge.methods._task_vectors import TaskVector, majority, task_vectors
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise

TINY = 1e-6
"""The least sum of weights. Where the mean squares sum to less, the models weigh the same, as in
mergekit: so it is for most fine-tunes, whose weights move by less than 0.001."""

Mask = Callable[[slice], Tensor] | None
"""Which elements of a block are kept; None: all."""


def merge(job: Job) -> Tensor:
    """The variances are kept in the memory of the result until they are not needed any more."""
    assert job.base is not None
    vectors = task_vectors(job)
    dtype, base = vectors[0].dtype, vectors[0].base
    result = new_result(job.base, dtype)
    out = flat(result)
    mask = _select(vectors, float(job.parameters["select_topk"]), out)
    weights = _weights(vectors, mask)
    for block in blocks(out.numel()):
        deltas = [_kept(vector, mask, block, dtype) for vector in vectors]
        torch.add(base[block].to(dtype), _erased(deltas, weights), out=out[block])
    return result


def _select(vectors: list[TaskVector], share: float, variances: Tensor) -> Mask:
    """The elements with the largest variances."""
    if share >= 1:
        return None
    elements, varying = variances.numel(), 0
    for block in blocks(elements):
        variances[block] = _variance([vector.block(block) for vector in vectors])
        varying += int(variances[block].count_nonzero())
    kept = int(varying * share)
    (lower,) = cuts(lambda block: variances[block].float(), elements, (elements - kept,))
    return lambda block: lower.reached(variances[block].float(), block)


def _variance(deltas: list[Tensor]) -> Tensor:
    """Over the models, by Welford's recurrence in float64, as torch computes it."""
    mean, squares = deltas[0].double(), torch.zeros_like(deltas[0], dtype=torch.float64)
    for number, delta in enumerate(deltas[1:], 2):
        difference = delta.double() - mean
        mean += difference / number
        squares += difference.mul_(delta - mean)
    return squares.div_(len(deltas)).to(deltas[0].dtype)


def _kept(vector: TaskVector, mask: Mask, block: slice, dtype: torch.dtype) -> Tensor:
    delta = vector.block(block).to(dtype)
    return delta.mul_(mask(block).to(dtype)) if mask else delta


def _weights(vectors: list[TaskVector], mask: Mask) -> Tensor:
    """The mean square of each model, so that they sum to 1."""

    def squares(vector: TaskVector, block: slice, dtype: torch.dtype) -> Tensor:
        return _kept(vector, mask, block, dtype).square_()

    first = vectors[0]
    sums = [add_up(v.elements, first.dtype, partial(squares, v)) / v.elements for v in vectors]
    weights = torch.stack([x.double() for x in sums])
    if all(x.dtype == torch.float32 for x in sums):
        weights = weights.float()
    summed = weights.sum().item()
    if abs(summed) < TINY:
        return torch.full((len(vectors),), 1 / len(vectors), dtype=first.dtype)
    return (weights / summed).to(first.dtype)


def _erased(deltas: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean of the deltas that have the majority's sign."""
    sign = majority(deltas)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = (delta * sign > 0).to(sign.dtype).mul_(weight)
        divisor += agreeing
        mixed += delta.mul_(agreeing)
    return mixed.div_(divisor.clamp_(min=TINY))


PLUGIN = Method(
    name="sce",
    function=merge,
    meaning="differences to the base that vary most, weighted by their size, of the elected sign",
    base=Base.REQUIRED,
    parameters=(
        Parameter(
            "select_topk", float, "share of varying elements that is kept", 1.0, least=0, most=1
        ),
        Parameter("int8_mask", bool, "mergekit's type of masks; changes no result", False),
    ),
    promises=frozenset({Promise.SYMMETRIC}),
    temporaries=0,
)
