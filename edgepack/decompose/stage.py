"""The decompose stage: W ≈ Q + L·R of every weight."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgepack.calibration.stage import DOUBLE, FLOAT, Calibrate, matrices_by_block
from edgepack.checkpoint import Checkpoint
from edgepack.core.executor import AT_ONCE, Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.core.weight_files import load_about
from edgepack.core.weights import WeightSpec
from edgepack.decompose.weights import Item, decompose
from edgepack.grids.stage import Grids, OnGrids
from edgepack.planning.plan import READS, Chosen, Plan, Text

LOSSES = {"clipped": "too large for float16 scales", "lost": "too small, and became 0"}
"""What a decomposed weight says of values that its format could not hold."""


class Calibrated(Protocol):
    """H of every weight: a calibrate stage, or what is kept of one."""

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def objective(self) -> str: ...  # noqa: D102

    @property
    def hessians(self) -> Path | None: ...  # noqa: D102

    @property
    def text(self) -> Text: ...  # noqa: D102


@dataclass(frozen=True)
class Decompose(Stage):
    """One file per matrix, in the formats `chosen`; its key is that of those very formats, however
    they came to be chosen."""

    model: Checkpoint
    calibration: Calibrated | None
    chosen: Chosen
    damping: tuple[float, ...]
    iterations: int

    name = "decompose"
    code: ClassVar[tuple[str, ...]] = ("edgepack.decompose.weights", "edgepack.formats", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.calibration.key if self.calibration else self.model.key,)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {
            "formats": {name: vars(fmt) for name, fmt in self.chosen.formats.items()},
            "damping": list(self.damping),
            "iterations": self.iterations,
            "objective": self.calibration.objective if self.calibration else None,
        }

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        calibration = self.calibration
        hessians = calibration.hessians if calibration else None
        items = [
            Item(self.model, name, fmt, self.damping, self.iterations, hessians, folder)
            for name, fmt in self.chosen.formats.items()
        ]
        sequential = calibration is not None and hessians is None
        tokens = calibration.text.tokens if calibration and sequential else None
        yield from decompose(items, tokens, executor)

    def warnings(self) -> list[str]:
        """What float16 scales could not hold, by weight, and grids that were not taken."""
        remarks = self.chosen.remarks() if isinstance(self.chosen, OnGrids) else []
        return remarks + [
            f"{name}: {about[kind]} values {what}"
            for name, about in self.about(self.folder).items()
            for kind, what in LOSSES.items()
            if about.get(kind)
        ]

    def about(self, folder: Path) -> dict[str, dict[str, Any]]:
        """What is known of every weight in a folder of this stage, or of one that goes on from it:
        errors, damping, method."""
        return {name: load_about(folder, name) for name in self.chosen.formats}

    def memory(self) -> int:
        """A few matrices with their copies and candidates, and the factors of their Hessians."""
        outside = ([spec] for spec in self.model.specs.values() if spec.block is None)
        groups: Iterable[list[WeightSpec]] = [*matrices_by_block(self.model), *outside]
        at_once = min(AT_ONCE, os.cpu_count() or 1)
        return max(sum(sorted(map(self._weight_bytes, group))[-at_once:]) for group in groups)

    def _weight_bytes(self, spec: WeightSpec) -> int:
        square = spec.shape[-1] ** 2
        two_sided = self.calibration is not None and self.calibration.objective == "model"
        if two_sided and spec.block is not None and spec.is_matrix:
            square += spec.shape[0] ** 2
        return 6 * FLOAT * spec.numel + 9 * DOUBLE * square


def join(plan: Plan) -> Plan:
    """The plan with every matrix decomposed; a checkpoint is written as it is."""
    if not plan.target.packs:
        return plan
    grids = plan.find(Grids)
    if grids is not None:
        plan = replace(plan, chosen=OnGrids(plan.chosen, grids))
    compress, calibration = plan.recipe.compress, plan.find(Calibrate)
    damping = tuple(compress.damping) if compress else ()
    iterations = compress.iterations if compress else 0
    return plan.adding(Decompose(plan.model, calibration, plan.chosen, damping, iterations))
