"""Steps of a plan that need no stage: formats that the recipe names, and exact rewritings."""

from __future__ import annotations

from dataclasses import replace

from edgepack.model.padding import Padded, pad
from edgepack.model.rotation import Rotated
from edgepack.planning.formats import Given, choose
from edgepack.planning.plan import Plan


def rewrite(plan: Plan) -> Plan:
    """The plan with the model rotated and padded, where the recipe says so."""
    compress, model, notes = plan.recipe.compress, plan.model, []
    if compress is not None and compress.rotate == "hadamard":
        model = Rotated(model)
        if not model.stream:
            notes.append(
                "compress.rotate: the head is tied to the embeddings and cannot take the final "
                "norm's gains, so that only the values of the heads are rotated"
            )
    if compress is not None and compress.pad_width is not None:
        model = pad(model, compress.pad_width)
        if isinstance(model, Padded):
            notes.append(f"compress.pad_width: {model.describe()}")
    return replace(plan, model=model, notes=(*plan.notes, *notes))


def name_formats(plan: Plan) -> Plan:
    """The plan with the formats that the recipe names; where it gives a size, they come later."""
    compress = plan.recipe.compress
    if compress is not None and compress.is_budget:
        return plan
    chosen, fallbacks = choose(plan.model, compress, plan.target)
    return replace(plan, chosen=Given(chosen), fallbacks=fallbacks)
