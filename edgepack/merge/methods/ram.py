"""Reinforced Agent Merging: "Behavior Knowledge Merge in Reinforced Agentic Models"
(arXiv 2601.13572): what only one model changes is taken whole, what several change is averaged over
those that do. A change is a difference to the base above `epsilon`."""

from __future__ import annotations

from torch import Tensor

from edgepack.merge.methods import _changes
from edgepack.merge.methods.base import Base, Job, Method, Promise


def merge(job: Job) -> Tensor:
    """θ₀ + Σ τᵢ / (number of models that change the element)."""
    return _changes.merge(job, [1.0] * len(job.tensors))


PLUGIN = Method(
    name="ram",
    function=merge,
    meaning="changes of one model whole, of several averaged",
    base=Base.REQUIRED,
    parameters=(_changes.EPSILON,),
    promises=frozenset({Promise.IDEMPOTENT, Promise.SYMMETRIC}),
    temporaries=0,
)
