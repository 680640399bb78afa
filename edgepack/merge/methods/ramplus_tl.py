"""RAM+ by tensors: `ram` (arXiv 2601.13572), where what only one model changes is multiplied by
1 + r·min(ρ, α). ρ is the number of elements that the model changes together with others, divided by
the number that it changes alone. The paper takes ρ over the whole model; mergekit and this take it
of the tensor (hence "tl", tensor-local)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.merge.methods import _changes
from edgepack.merge.methods._blocks import blocks
from edgepack.merge.methods._task_vectors import task_vectors
from edgepack.merge.methods.base import Base, Job, Method, Parameter, Promise


def merge(job: Job) -> Tensor:
    """Two passes: the counts, then the sum."""
    vectors = task_vectors(job)
    epsilon = float(job.parameters["epsilon"])
    shared, unique = torch.zeros(2, len(vectors), dtype=torch.int64)
    for block in blocks(vectors[0].elements):
        changed = [vector.block(block).abs_() > epsilon for vector in vectors]
        count = torch.stack(changed).sum(0)
        shared += torch.stack([(x & (count > 1)).sum() for x in changed])
        unique += torch.stack([(x & (count == 1)).sum() for x in changed])
    rho = shared / unique.clamp(min=epsilon)
    factors = 1 + float(job.parameters["r"]) * rho.clamp(0, float(job.parameters["alpha"]))
    return _changes.merge(job, factors.tolist())


PLUGIN = Method(
    name="ramplus_tl",
    function=merge,
    meaning="changes of one model whole and enlarged, of several averaged",
    base=Base.REQUIRED,
    parameters=(
        Parameter("r", float, "how much changes of one model are enlarged", 0.1),
        Parameter("alpha", float, "most that r is multiplied by", 0.2, least=0),
        _changes.EPSILON,
    ),
    promises=frozenset({Promise.SYMMETRIC}),
    temporaries=0,
)
