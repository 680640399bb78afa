"""The allocate stage: what every format and rank would cost, and so what a size buys."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from edgepack.allocate.budget import Allocation, search, spend
from edgepack.allocate.costs import Item, Search, measure_costs
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.streamed import PLACE, clean, stream, sweep_disk, sweep_memory
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, keyed, precise
from edgepack.core.executor import Executor, most_at_once
from edgepack.core.hardware import working_memory
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.weights import WeightFormat
from edgepack.errors import RecipeError
from edgepack.grids.stage import Grids
from edgepack.planning.plan import PROCESS, Plan
from edgepack.planning.target import Target
from edgepack.recipe.sections import Compress


@dataclass(frozen=True)
class Allocate(Stage):
    """One file of costs per weight. What they buy for a size is no stage but computed from them: it
    takes a second, and the key of what is decomposed is then that of its formats."""

    model: Checkpoint
    calibration: Calibrate
    tried: Search
    compress: Compress
    target: Target
    grids: Grids | None = None
    device: torch.device = CPU

    name = "allocate"
    code = ("edgepack.allocate.costs", "edgepack.formats")

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.calibration.key, *([self.grids.key] if self.grids else []))

    def options(self) -> dict[str, Any]:  # noqa: D102
        return asdict(self.tried) | keyed(precise(self.device))

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        hessians = folder / PLACE if self.calibration.streams else self.calibration.folder
        items = self._items(hessians, folder)
        if self.calibration.streams:
            yield from self._streamed(items, folder, executor)
            return
        clean(folder)  # of a run that did not keep H
        yield from measure_costs(items, executor)

    def _items(self, hessians: Path, folder: Path) -> list[Item]:
        tried, grids = self.tried, self.grids
        rest = (tuple(tried.ranks), tried.factors, tried.damping, hessians, folder)
        return [
            Item(self.model, name, tuple(names), *rest, exact, precise(self.device))
            for name, names in tried.formats.items()
            for exact in [grids.offered(name) if grids else None]
        ]

    def _streamed(self, items: Sequence[Item], folder: Path, executor: Executor) -> Steps[None]:
        """The costs of a block's weights as soon as their H is there."""
        of_block: dict[int | None, list[Item]] = {}
        for item in items:
            of_block.setdefault(item.spec.block, []).append(item)

        def use(block: int | None, _: Path) -> Steps[None]:
            yield from measure_costs(of_block.get(block, []), executor)

        yield from stream(self.calibration, folder, executor, use)

    def memory(self) -> int:
        """The largest weights that are tried side by side, or the sweep, if H is made here."""
        needed = [item.memory for item in self._items(Path(), Path())]
        own = most_at_once(needed, working_memory() - PROCESS, os.cpu_count() or 1)
        return max(own, sweep_memory(self.calibration))

    def disk(self) -> Disk:
        """That of the sweep, if H is made here; costs are small."""
        return sweep_disk(self.calibration)

    @property
    def allocation(self) -> Allocation:
        """What the size buys: a guess from the bits alone until the stage is done."""
        return self._measured if self.is_done else self._guessed

    @cached_property
    def _measured(self) -> Allocation:
        return self._spend(self.folder)

    @cached_property
    def _guessed(self) -> Allocation:
        return self._spend(None)

    def _spend(self, measured: Path | None) -> Allocation:
        files = partial(self.target.files_size, self.model)
        required = {"required": self.grids.required} if self.grids else {}
        return spend(self.model, self.compress, self.tried, measured, files, **required)

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        """How every matrix will be stored."""
        return self.allocation.formats

    def facts(self) -> dict[str, Any]:
        """What the size buys, and the KL to expect."""
        return {"allocation": self.allocation.as_dict()}


def join(plan: Plan) -> Plan:
    """The plan with formats and ranks chosen for a size, where the recipe gives one."""
    compress = plan.recipe.compress
    if compress is None or not compress.is_budget:
        return plan
    if plan.recipe.calibrate.objective != "model":
        raise RecipeError(
            f"calibrate.objective: errors of {plan.recipe.calibrate.objective!r} cannot be "
            "compared between all weights, as a budget needs",
            hint="use `model` (the default)",
        )
    calibration = plan.find(Calibrate)
    assert calibration is not None
    tried = search(plan.model, compress, plan.target)
    given = (plan.model, calibration, tried, compress, plan.target, plan.find(Grids))
    stage = Allocate(*given, plan.device)
    try:
        _ = stage.allocation  # a size that is too small is found here
    except RecipeError as error:
        if plan.profile is not None:
            error.hint = f"{error.hint}; those that are slow on the device have to be named there"
        raise
    return replace(plan, chosen=stage).adding(stage)
