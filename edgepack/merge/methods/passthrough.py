"""One model's tensor as it is: for stacks of layers of several models ("frankenmerges"), a practice
without a paper. `scale` multiplies it: recipes set that of `o_proj` and `down_proj` to 0, so
that a repeated block adds nothing at first."""

from __future__ import annotations

from torch import Tensor

from edgepack.merge.methods._blocks import working_type
from edgepack.merge.methods.base import Job, Method, Parameter, Promise


def merge(job: Job) -> Tensor:
    """θ itself, in its own type, or scale·θ."""
    scale = job.of_models[0].get("scale")
    if scale is None:
        return job.tensors[0]
    return job.tensors[0].to(working_type(job.tensors)) * float(scale)


PLUGIN = Method(
    name="passthrough",
    function=merge,
    meaning="one model's tensors, for stacks of layers",
    most=1,
    parameters=(Parameter("scale", float, "factor of the tensor", None, of_model=True),),
    promises=frozenset({Promise.IDEMPOTENT}),
    temporaries=0,
    shares=True,
)
