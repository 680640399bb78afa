"""Barycentric interpolation of several models on a sphere, of their differences to a base if there
is one. By Charles Goddard (goddard.blog/posts/multislerp-wow-what-a-cool-idea), without a paper.

Unit vectors are projected onto the tangent space at their weighted mean, added there with their
weights, and mapped back (exponential map); the length is the weighted mean of the lengths. This is
the first step of `karcher` with weights.

Where the weighted mean is 0 there is no such point. mergekit then interpolates two models linearly
and refuses more; here any number is interpolated linearly, because tensors that no model changed
have differences of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from edgepack.merge.methods._blocks import add_up, blocks, flat, new_result, norm, working_type
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise, Values


def merge(job: Job) -> Tensor:
    """Four passes: lengths, mean, tangents, result."""
    return _Sphere(job).merge()


class _Sphere:
    """The vectors of a job, a block at a time."""

    def __init__(self, job: Job) -> None:
        self.dtype = working_type([*job.tensors, *([] if job.base is None else [job.base])])
        self.vectors = [flat(tensor) for tensor in job.tensors]
        self.base = None if job.base is None else flat(job.base)
        self.elements = self.vectors[0].numel()
        self.eps = float(job.parameters["eps"])
        self.result = new_result(job.tensors[0], self.dtype)
        weights = torch.tensor(job.numbers("weight"), dtype=self.dtype)
        self.weights = weights / weights.sum() if job.parameters["normalize_weights"] else weights

    def merge(self) -> Tensor:
        """The result, which holds the mean of unit vectors in between."""
        out = flat(self.result)
        self.lengths = [
            norm(self.elements, self.dtype, partial(self.read, v)) for v in self.vectors
        ]
        for block in blocks(self.elements):
            out[block] = self.weighted([self.unit(i, block) for i in range(len(self.vectors))])
        length = norm(self.elements, self.dtype, lambda block, dtype: out[block].to(dtype))
        if len(self.vectors) == 1 or length < self.eps:
            for block in blocks(self.elements):
                out[block] = self.linear(block)
            return self.result
        for block in blocks(self.elements):
            out[block] /= length
        self.follow(out, self.tangent(out))
        return self.result

    def read(self, vector: Tensor, block: slice, dtype: torch.dtype) -> Tensor:
        """θᵢ, or θᵢ − θ₀."""
        values = vector[block].to(dtype)
        return values if self.base is None else values - self.base[block].to(dtype)

    def unit(self, model: int, block: slice) -> Tensor:
        """The vector with length 1."""
        values = self.read(self.vectors[model], block, self.dtype)
        return values / (self.lengths[model] + self.eps)

    def weighted(self, tensors: Sequence[Tensor]) -> Tensor:
        """Σ wᵢxᵢ."""
        result = tensors[0] * self.weights[0]
        for tensor, weight in zip(tensors[1:], self.weights[1:], strict=True):
            result += tensor * weight
        return result

    def linear(self, block: slice) -> Tensor:
        """θ₀ + Σ wᵢ(θᵢ − θ₀); one model is itself, whatever its weight."""
        if len(self.vectors) == 1:
            return self.vectors[0][block].to(self.dtype)
        values = self.weighted([self.read(v, block, self.dtype) for v in self.vectors])
        return values if self.base is None else values.add_(self.base[block].to(self.dtype))

    def tangent(self, mean: Tensor) -> Tensor:
        """The weighted sum of the unit vectors' parts at right angles to their mean."""

        def product(model: int, block: slice, dtype: torch.dtype) -> Tensor:
            return self.unit(model, block).mul_(mean[block]).to(dtype)

        models = range(len(self.vectors))
        dots = [add_up(self.elements, self.dtype, partial(product, model)) for model in models]
        result = torch.empty_like(mean)
        for block in blocks(self.elements):
            result[block] = self.weighted(
                [self.unit(model, block) - dots[model] * mean[block] for model in models]
            )
        return result

    def follow(self, mean: Tensor, tangent: Tensor) -> None:
        """Overwrite the mean by the point that the tangent leads to, of the mean length."""
        angle = norm(self.elements, self.dtype, lambda block, dtype: tangent[block].to(dtype))
        angle = angle + self.eps
        of_mean, of_tangent = torch.cos(angle), torch.sin(angle) / angle
        length = (torch.stack(self.lengths) * self.weights).sum()
        for block in blocks(self.elements):
            value = mean[block] * of_mean
            value += tangent[block].mul_(of_tangent)
            value *= length
            if self.base is not None:
                value += self.base[block].to(self.dtype)
            mean[block] = value


def check(of_models: Sequence[Values], whole: Values) -> str | None:
    """Weights that cancel out cannot be normalised."""
    weights = [float(values["weight"]) for values in of_models]
    normalize = len(weights) > 1 and whole["normalize_weights"]
    if normalize and abs(sum(weights)) <= 1e-6 * max(map(abs, weights)):
        return "the weights sum to 0; change one, or set normalize_weights: false"
    return None


PLUGIN = Method(
    name="multislerp",
    function=merge,
    meaning="spherical interpolation of several models, or of their differences to a base",
    base=Base.OPTIONAL,
    parameters=(
        Parameter("weight", float, "share of this model", of_model=True),
        Parameter("normalize_weights", bool, "divide weights by their sum", True),
        Parameter("eps", float, "added to lengths before dividing by them", 1e-8, least=0),
    ),
    check=check,
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=1,
)
