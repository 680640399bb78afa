# ruff: noqa: D102  (documented in `Stage`)
"""The stage merge_factors: weights without L and R, for runtimes that know no adapters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_weight, weight_path
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.decompose.stage import Decompose
from edgepack.errors import RecipeError
from edgepack.model.packed import Packed
from edgepack.planning.plan import Chosen, Plan
from edgepack.recover.stage import Recover

KEY = "export.merge_factors"


@dataclass(frozen=True)
class RankZero:
    """The formats of another choice, without factors."""

    chosen: Chosen

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        return {name: WeightFormat(fmt.Q) for name, fmt in self.chosen.formats.items()}


@dataclass(frozen=True)
class MergeFactors(Decompose):
    """Every weight with factors rounded again, as a whole and at rank 0, with the same H.

    What is rounded is the weight itself: Q + L·R would add its own error to that of the new Q. But
    after recovery it is Q + L·R, since training has made that more than an approximation. Weights
    without factors stay as they are.
    """

    factored: Decompose
    recovered: Recover | None

    name = "merge_factors"
    code = (*Decompose.code, "edgepack.model.packed", "edgepack.export.merge_factors")

    @property
    def source(self) -> Decompose | Recover:
        """The stage whose weights have factors."""
        return self.recovered or self.factored

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, self.source.key)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:
        yield Progress(self.name, 0, 1, "weights without factors")
        for name, fmt in self.factored.chosen.formats.items():
            path = weight_path(folder, name)
            if not fmt.rank and not path.exists():
                _link(weight_path(self.source.folder, name), path)
        yield from super().run(folder, executor)

    def load_factored(self, name: str) -> FactoredWeight:
        """A weight with its factors, as it was before."""
        return load_weight(self.source.folder, name)[0]

    def facts(self) -> dict[str, Any]:
        what = "Q + L·R as recovered" if self.recovered else "the weights themselves"
        folded = sum(fmt.rank > 0 for fmt in self.factored.chosen.formats.values())
        return {"merged_factors": {"rounded": what, "weights": folded}}


def _link(source: Path, place: Path) -> None:
    """The same file in another stage, linked where that is possible."""
    try:
        os.link(source, place)
    except OSError:  # a file system that knows no links
        temporary = place.with_name(place.name + ".tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(place)


def join(plan: Plan) -> Plan:
    """The plan with factors merged, where the recipe asks for it."""
    if not plan.recipe.export.merge_factors:
        return plan
    decomposed, recovered = plan.find(Decompose), plan.find(Recover)
    compress = plan.recipe.compress
    given = compress is not None and not compress.is_budget
    if decomposed is None or (given and not any(fmt.rank for fmt in plan.formats.values())):
        raise RecipeError(
            f"{KEY}: no weight has factors, so there is nothing to merge",
            hint="remove it, or give compress.rank and a target that packs weights",
        )
    model, notes = plan.model, []
    if recovered is not None:
        load = partial(_load, recovered)
        model = Packed(plan.model, load, {"recovered": recovered.key})
        notes = [f"{KEY}: the errors of the layers are those against Q + L·R as recovered"]
    stage = MergeFactors(
        model,
        decomposed.calibration,
        RankZero(plan.chosen),
        decomposed.damping,
        decomposed.iterations,
        decomposed,
        recovered,
        device=plan.device,
    )
    return replace(plan.adding(stage, notes=notes), chosen=stage.chosen)


def _load(stage: Recover, name: str) -> FactoredWeight:
    return load_weight(stage.folder, name)[0]
