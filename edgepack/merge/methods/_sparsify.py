"""Ways to keep a share of a task vector's elements. Each says in its docstring whose it is.

`rescale`: DARE's paper divides by the density, so that the expected value stays. mergekit matches
the L1 norm instead, Σ|τ| before over Σ|τ| after, for all ways; so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edgepack.merge.methods._blocks import BLOCK, add_up, blocks
from edgepack.merge.methods._order import cuts
from edgepack.merge.methods._task_vectors import Sparse, TaskVector
from edgepack.merge.methods.base import Parameter, Values

TINY = 1e-7
"""An L1 norm below which nothing is rescaled."""

GAMMA = Parameter(
    "gamma",
    float,
    "share of the largest elements that is left out",
    0.01,
    of_model=True,
    least=0,
    most=1,
)
EPSILON = Parameter(
    "epsilon",
    float,
    "how far chances are from the density, for the smallest and the largest",
    0.15,
    of_model=True,
    least=0,
    most=1,
)


def check_epsilon(of_models: Sequence[Values], _: Values) -> str | None:
    """Chances are above 0 and below 1, except where all or nothing is kept."""
    for values in of_models:
        density, epsilon = float(values["density"]), float(values["epsilon"])
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            return f"density {density:g} ± epsilon {epsilon:g} is not between 0 and 1"
    return None


def magnitude(vector: TaskVector) -> Sparse:
    """The largest elements: TIES (arXiv 2306.01708), algorithm 1, "Trim". One at least."""
    density = float(vector.parameters["density"])
    if density >= 1:
        return _everything
    if density <= 0:
        return _nothing
    kept = max(1, int(density * vector.elements))
    (lower,) = cuts(vector.magnitude, vector.elements, (vector.elements - kept,))

    def keep(delta: Tensor, block: slice) -> Tensor:
        return lower.reached(delta.abs().float(), block)

    return _rescaled(vector, keep)


def without_outliers(vector: TaskVector) -> Sparse:
    """All but the share `gamma` of largest elements and the smallest ones, so that the share
    `density` stays: Model Breadcrumbs (arXiv 2312.06795). Its β and γ are shares that are
    masked at either end, by layer; density is 1 − β − γ here. Where density + gamma is above 1,
    fewer of the largest are masked."""
    density = float(vector.parameters["density"])
    if density >= 1:
        return _everything
    elements = vector.elements
    kept, largest = int(density * elements), int(float(vector.parameters["gamma"]) * elements)
    first = max(0, elements - kept - largest)
    if kept == 0:
        return _nothing
    lower, upper = cuts(vector.magnitude, elements, (first, first + kept))

    def keep(delta: Tensor, block: slice) -> Tensor:
        size = delta.abs().float()
        return lower.reached(size, block).logical_and_(~upper.reached(size, block))

    return _rescaled(vector, keep)


def random(vector: TaskVector) -> Sparse:
    """Each element with probability `density`: DARE (arXiv 2311.03099), whose drop rate p is
    1 − density."""
    density = float(vector.parameters["density"])
    if density >= 1:
        return _everything

    def keep(delta: Tensor, block: slice) -> Tensor:
        return vector.job.random(vector.model, block) < density

    return _rescaled(vector, keep)


def by_rank(vector: TaskVector) -> Sparse:
    """Each element with a probability that grows with the rank of its magnitude in its row, evenly
    from density − epsilon to density + epsilon: MagPrune of DELLA (arXiv 2406.11617).

    Rows are along the last dimension; a vector is one row. (mergekit takes dimension 1, the same
    for matrices.) Of equal magnitudes, those further right rank higher. A row of one element
    has the probability density; mergekit fails there.
    """
    density = float(vector.parameters["density"])
    if density >= 1:
        return _everything
    if density <= 0:
        return _nothing
    shape = vector.job.tensors[vector.model].shape
    width = shape[-1] if shape else 1
    probability = _probabilities(width, density, float(vector.parameters["epsilon"]))
    mask = torch.empty(vector.elements, dtype=torch.bool)
    step = max(1, 4 * BLOCK // max(1, width)) * width
    for block in blocks(vector.elements, step):
        order = _ascending(vector.magnitude(block).reshape(-1, width))
        chance = torch.empty(order.shape)
        chance.scatter_(1, order, probability.expand(order.shape))
        mask[block] = vector.job.random(vector.model, block) < chance.flatten()

    def keep(_: Tensor, block: slice) -> Tensor:
        return mask[block]

    return _rescaled(vector, keep)


def _probabilities(width: int, density: float, epsilon: float) -> Tensor:
    """The probability of each rank."""
    if width == 1:
        return torch.tensor([density])
    return (density - epsilon) + torch.arange(width) / (width - 1) * 2 * epsilon


def _ascending(magnitudes: Tensor) -> Tensor:
    """For each row its columns in ascending order of magnitude; int64.

    The bits of a float32 that is not negative order as it does. With the column below them, they
    are numbers that are all different, and sorted several times faster than by torch's argsort.
    """
    bits = (magnitudes + 0.0).numpy().view(np.uint32).astype(np.uint64)
    keys = bits << np.uint64(32) | np.arange(magnitudes.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(0xFFFFFFFF)
    return torch.from_numpy(keys.view(np.int64))


def _everything(delta: Tensor, _: slice) -> Tensor:
    return delta


def _nothing(delta: Tensor, _: slice) -> Tensor:
    return delta.zero_()


def _rescaled(vector: TaskVector, keep: Callable[[Tensor, slice], Tensor]) -> Sparse:
    """What zeroes elements that are not kept, and restores the L1 norm if the job says so."""

    def masked(delta: Tensor, block: slice) -> Tensor:
        return delta.mul_(keep(delta, block).to(delta.dtype))

    if not vector.job.parameters["rescale"]:
        return masked

    def size(block: slice, dtype: torch.dtype) -> Tensor:
        return vector.block(block).abs_().to(dtype)

    def size_left(block: slice, dtype: torch.dtype) -> Tensor:
        return masked(vector.block(block), block).abs_().to(dtype)

    before = add_up(vector.elements, vector.dtype, size)
    after = add_up(vector.elements, vector.dtype, size_left)
    if before < TINY or after < TINY:
        return masked
    ratio = before / after

    def rescaled(delta: Tensor, block: slice) -> Tensor:
        return masked(delta, block).mul_(ratio)

    return rescaled
