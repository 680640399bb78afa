"""The Karcher mean: the point on the sphere with the least sum of squared angles to all models.

Hermann Karcher, "Riemannian center of mass and mollifier smoothing" (doi 10.1002/cpa.3160300502);
for merging, mergekit names arXiv 2603.04972. The iteration is the usual one: average the logarithms
of all unit vectors at the present mean, and follow the exponential map. The length of the result is
the mean of the lengths. All models, the base too, weigh the same.

Every point of the iteration is a linear combination of the inputs. So it is done with their
coefficients and the inputs' inner products in float64: one pass over the tensors for those, one for
the result, however many iterations. mergekit does it with whole tensors in float32, and its results
differ by that rounding.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.merge.methods._blocks import blocks, flat, new_result, total, working_type
from edgepack.merge.methods.base import Job, Method, Parameter, Promise

Float = NDArray[np.float64]
OPPOSITE = 1e-6
"""A vector within this angle of the opposite of the mean has no direction to move it in."""


def merge(job: Job) -> Tensor:
    """Two passes."""
    inputs = [flat(tensor) for tensor in job.tensors]
    dtype = working_type(job.tensors)
    products = _inner_products(inputs)
    tol, most = float(job.parameters["tol"]), int(job.parameters["max_iter"])
    factors = np.ones(1) if len(inputs) == 1 else _factors(products, tol, most)
    result = new_result(job.tensors[0], dtype)
    out = flat(result)
    for block in blocks(out.numel()):
        target = out[block].zero_()
        for tensor, factor in zip(inputs, factors, strict=True):
            target += tensor[block].to(dtype) * float(factor)
    return result


def _inner_products(inputs: list[Tensor]) -> Float:
    """⟨θᵢ, θⱼ⟩ in float64, [models, models]."""
    models = len(inputs)
    result = torch.zeros(models, models, dtype=torch.float64)
    for block in blocks(inputs[0].numel()):
        values = [tensor[block].double() for tensor in inputs]
        for i, j in combinations_with_replacement(range(models), 2):
            result[i, j] += total(values[i] * values[j])
    upper: Float = result.numpy()
    return upper + np.triu(upper, 1).T


def _factors(products: Float, tol: float, most: int) -> Float:
    """What each input is multiplied by."""
    lengths: Float = np.sqrt(products.diagonal())
    valid = lengths > tol
    factors = np.zeros(len(lengths))
    if valid.any():
        cosines = products[np.ix_(valid, valid)] / np.outer(lengths[valid], lengths[valid])
        factors[valid] = _mean(cosines, tol, most) / lengths[valid] * lengths.mean()
    return factors


def _mean(cosines: Float, tol: float, most: int) -> Float:
    """The mean of unit vectors with those inner products, as a combination of them."""

    def length(x: Float) -> float:
        return math.sqrt(max(0.0, float(x @ cosines @ x)))

    models = len(cosines)
    identity = np.eye(models)
    mean = np.full(models, 1 / models)
    mean = identity[0] if length(mean) < tol else mean / length(mean)
    for _ in range(most):
        tangent = np.zeros(models)
        for unit, dot in zip(identity, np.clip(cosines @ mean, -1, 1), strict=True):
            angle = math.acos(dot)
            if tol <= angle <= math.pi - OPPOSITE:
                tangent += angle / math.sin(angle) * (unit - dot * mean) / models
        step = length(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / length(mean)
    return mean


PLUGIN = Method(
    name="karcher",
    function=merge,
    meaning="the point on a sphere nearest to all models",
    parameters=(
        Parameter("max_iter", int, "most iterations", 10, least=0),
        Parameter("tol", float, "a step or a length that counts as 0", 1e-5, least=0),
    ),
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
