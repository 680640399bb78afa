"""Task vectors θᵢ − θ₀, made sparse, weighted and added to the base: what task_arithmetic, ties,
dare, della and breadcrumbs have in common.

"Editing Models with Task Arithmetic" (arXiv 2212.04089), section 2: θ₀ + λ·Σ wᵢτᵢ. "TIES-Merging"
(arXiv 2306.01708), algorithm 1: trim, elect a sign for every element, average the values that have
it. Where mergekit differs from the papers, this follows mergekit, since its recipes are tuned so:

- The sign is elected by weighted values, Σ wᵢτᵢ (the paper has no weights); zero counts as +.
- The mean of those that agree is Σ wᵢτᵢ / Σ wᵢ over them. `normalize` false leaves the sum.
- `rescale` multiplies what is left by the ratio of the L1 norms before and after (`_sparsify`).
- Without a sign election, weights that sum to 0 (below 1e-8) are not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, new_result, working_type
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise, Values


@dataclass(frozen=True)
class TaskVector:
    """θᵢ − θ₀ of one model, computed when it is asked for."""

    job: Job
    model: int
    theta: Tensor
    base: Tensor
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """How many there are."""
        return self.theta.numel()

    @property
    def parameters(self) -> Values:
        """Those of the model."""
        return self.job.of_models[self.model]

    def block(self, block: slice) -> Tensor:
        """Some of its elements, which may be overwritten."""
        return self.theta[block].to(self.dtype) - self.base[block].to(self.dtype)

    def magnitude(self, block: slice) -> Tensor:
        """|θᵢ − θ₀| in float32."""
        return self.block(block).abs_().float()


Sparse = Callable[[Tensor, slice], Tensor]
"""Zeroes elements of a block of a task vector in place, and rescales the others."""
Sparsify = Callable[[TaskVector], Sparse]
"""Decides what is kept of a task vector."""


def task_vectors(job: Job) -> list[TaskVector]:
    """Those of all models."""
    if job.base is None:
        raise ValueError(f"{job.name}: no base")
    dtype, base = working_type([*job.tensors, job.base]), flat(job.base)
    return [
        TaskVector(job, model, flat(tensor), base, dtype)
        for model, tensor in enumerate(job.tensors)
    ]


def merge(job: Job, sparsify: Sparsify | None, elect_signs: bool) -> Tensor:
    """θ₀ + λ·Σ wᵢτᵢ over sparse task vectors, with or without an election of signs."""
    vectors = task_vectors(job)
    sparse = [sparsify(vector) if sparsify else None for vector in vectors]
    dtype, base = vectors[0].dtype, vectors[0].base
    weights = torch.tensor(job.numbers("weight"), dtype=dtype)
    scale = job.parameters["lambda"]
    combine = _elected if elect_signs else _summed
    assert job.base is not None
    result = new_result(job.base, dtype)
    out = flat(result)
    for block in blocks(out.numel()):
        deltas = []
        for vector, make_sparse, weight in zip(vectors, sparse, weights, strict=True):
            delta = vector.block(block)
            if make_sparse:
                delta = make_sparse(delta, block)
            deltas.append(delta.mul_(weight))
        mixed = combine(deltas, weights, bool(job.parameters["normalize"]))
        if scale != 1:
            mixed *= scale
        torch.add(base[block].to(dtype), mixed, out=out[block])
    return result


def _summed(deltas: list[Tensor], weights: Tensor, normalize: bool) -> Tensor:
    mixed = deltas[0]
    for delta in deltas[1:]:
        mixed += delta
    if normalize:
        divisor = weights.sum()
        mixed /= divisor if divisor.abs() >= 1e-8 else 1
    return mixed


def majority(deltas: list[Tensor]) -> Tensor:
    """1 where the sum of the deltas is at least 0, −1 elsewhere."""
    votes = deltas[0].clone()
    for delta in deltas[1:]:
        votes += delta
    return torch.where(votes >= 0, 1.0, -1.0).to(votes.dtype)


def _elected(deltas: list[Tensor], weights: Tensor, normalize: bool) -> Tensor:
    sign = majority(deltas)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = delta.mul_(sign).clamp_(min=0)
        mixed += agreeing
        if normalize:
            divisor += (agreeing > 0).to(sign.dtype).mul_(weight)
    mixed *= sign
    if normalize:
        mixed /= divisor.masked_fill_(divisor == 0, 1)
    return mixed


def method(
    name: str,
    meaning: str,
    *own: Parameter,
    sparsify: Sparsify | None = None,
    elect_signs: bool = False,
    normalize: bool = False,
    rescale: bool = False,
    check: Callable[[Sequence[Values], Values], str | None] | None = None,
    random: bool = False,
    masks: bool = False,
) -> Method:
    """A method of this family: how it makes task vectors sparse, and its defaults.

    `masks` says that it keeps a mask of each model, a byte an element.
    """
    return Method(
        name=name,
        function=partial(merge, sparsify=sparsify, elect_signs=elect_signs),
        meaning=meaning,
        base=Base.REQUIRED,
        parameters=(
            Parameter("weight", float, "factor of this model's task vector", of_model=True),
            Parameter(
                "density",
                float,
                "share of elements that is kept",
                1.0,
                of_model=True,
                least=0,
                most=1,
            ),
            *own,
            Parameter("normalize", bool, "divide by the sum of the weights", normalize),
            Parameter("rescale", bool, "keep the L1 norm of sparse task vectors", rescale),
            Parameter("lambda", float, "factor of the merged task vector", 1.0),
            Parameter("int8_mask", bool, "mergekit's type of masks; changes no result", False),
        ),
        promises=frozenset() if random else frozenset({Promise.SYMMETRIC}),
        check=check,
        temporaries=0,
        temporaries_per_model=0.25 if masks else 0,
    )
