"""The grids stage, and the formats of a plan once it is known which weights lie on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack import formats
from edgepack.checkpoint import Checkpoint
from edgepack.core import plugins
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.core.weights import WeightFormat
from edgepack.errors import RecipeError
from edgepack.grids.find import STAGE, find_grids, load_grids, matrices
from edgepack.planning.formats import allowed, find_format, options_of
from edgepack.planning.plan import READS, Chosen, Plan
from edgepack.recipe.sections import Compress, Exact

KEY = "compress.exact"
PLACE = "compress.candidates"
NAMED = 3
"""Weights that a message names."""
UNTOUCHED = "f16"
"""A format that is no grid."""


@dataclass(frozen=True)
class Grids(Stage):
    """Looks at every matrix once. `kept` are weights whose format the recipe names one by one."""

    model: Checkpoint
    types: tuple[str, ...]
    exact: Exact
    kept: frozenset[str]

    name = STAGE
    code = ("edgepack.grids.find", "edgepack.formats", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.model.key,)

    def options(self) -> dict[str, Any]:  # noqa: D102
        demanded = sorted(self._wanted) if self.exact == "demand" else []
        return {"types": list(self.types), "demanded": demanded}

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield from find_grids(self.model, self.types, folder, executor)
        found = load_grids(self.model, folder)
        missed = [name for name in self._wanted if name not in found]
        if missed and self.exact == "demand":
            raise RecipeError(
                f"{KEY}: demand: {_listed(missed)} on no grid of {', '.join(self.types)}",
                hint="name a format for them in compress.overrides, or write exact: prefer",
            )

    @property
    def found(self) -> Mapping[str, str]:
        """Weight → the smallest type that takes it as it is; empty until that is known."""
        return self._found if self.is_done else {}

    @cached_property
    def _found(self) -> dict[str, str]:
        return load_grids(self.model, self.folder)

    @property
    def _wanted(self) -> list[str]:
        return [spec.name for spec in matrices(self.model) if spec.name not in self.kept]

    def offered(self, name: str) -> str | None:
        """The type that a weight may have at no error, beside others; None if there is none."""
        return None if name in self.kept else self.found.get(name)

    def required(self, name: str) -> str | None:
        """The type that a weight is to have, if the recipe prefers or demands exact ones."""
        return None if self.exact == "offer" else self.offered(name)

    def settle(self, name: str, fmt: WeightFormat) -> WeightFormat:
        """The format of a weight, without factors where its values are taken as they are."""
        wanted = self.required(name) or fmt.Q
        return WeightFormat(wanted, exact=True) if self.found.get(name) == wanted else fmt

    def facts(self) -> dict[str, Any]:
        """How much lies on a grid: numbers and weights by the smallest type, and of all."""
        if not self.is_done:
            return {}
        about: dict[str, dict[str, int]] = {}
        for spec in matrices(self.model):
            if spec.name in self.found:
                entry = about.setdefault(self.found[spec.name], {"weights": 0, "numbers": 0})
                entry["weights"] += 1
                entry["numbers"] += spec.numel
        every = list(matrices(self.model))
        numbers = sum(spec.numel for spec in every)
        return {STAGE: {"types": about, "weights": len(every), "numbers": numbers}}

    def warnings(self) -> list[str]:
        """Weights for which the recipe hoped in vain."""
        missed = [name for name in self._wanted if name not in self.found]
        if self.exact != "prefer" or not missed:
            return []
        return [f"{KEY}: {_listed(missed)} on no grid, and compressed as the recipe says"]

    def memory(self) -> int:
        """The largest matrix, as stored and as float32, and its codes."""
        return max((8 * spec.numel for spec in matrices(self.model)), default=0)


@dataclass(frozen=True)
class OnGrids:
    """The formats of another choice, exact wherever that is possible and wanted."""

    chosen: Chosen
    grids: Grids

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        """How every matrix will be stored; as the other choice says until grids are known."""
        chosen = self.chosen.formats
        if not self.grids.is_done:
            return chosen
        return {name: self.grids.settle(name, fmt) for name, fmt in chosen.items()}

    def remarks(self) -> list[str]:
        """What lies on a grid and gets another one."""
        stored = self.formats
        missed: dict[tuple[str, str], list[str]] = {}
        for name, grid in self.grids.found.items():
            if not stored[name].exact:
                missed.setdefault((grid, stored[name].Q), []).append(name)
        return [
            f"{KEY}: {_listed(names)} exactly on the grid of {grid}, and stored as {other}; "
            "exact: prefer takes such weights without an error"
            for (grid, other), names in missed.items()
        ]


def _listed(names: Sequence[str]) -> str:
    """Some weights by name, with the verb."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    verb = "lies" if len(names) == 1 else "lie"
    return f"{', '.join(names[:NAMED])}{more} {verb}"


def join(plan: Plan) -> Plan:
    """The plan with a search for grids, unless the recipe wants none or changes all weights."""
    compress = plan.recipe.compress
    if compress is None or compress.exact == "ignore" or not plan.target.packs:
        return plan
    if plan.model is not plan.original:
        if compress.exact == "offer":
            return plan
        raise RecipeError(
            f"{KEY}: {compress.exact}: the model is sliced, rotated or padded first, which takes "
            "its weights off every grid",
            hint="leave out slice, compress.rotate and compress.pad_width, or compress.exact",
        )
    kept = frozenset(
        spec.name
        for spec in matrices(plan.model)
        if options_of(spec, compress)[0].format is not None
    )
    return plan.adding(Grids(plan.model, _types(plan, compress), compress.exact, kept))


def _types(plan: Plan, compress: Compress) -> tuple[str, ...]:
    """The types that are looked for, the smallest first: those of the target, but for ones that
    the recipe leaves out of its candidates, or that are slow on the device."""
    every = [formats.get(name) for name in plugins.names("formats") if name != UNTOUCHED]
    usable = [f for f in every if plan.target.stores(f) and allowed(f, compress)]
    if compress.candidates is not None:
        named = {find_format(n, PLACE, plan.target, compress).name for n in compress.candidates}
        usable = [f for f in usable if f.name in named]
    usable.sort(key=lambda f: (f.bits_per_weight, f.block_size, f.name))
    names = [f.name for f in usable]
    if plan.profile is None or plan.target.name != "gguf":
        return tuple(names)
    return tuple(n for n in names if plan.profile.faster(n, plan.target.ladder) is None)
