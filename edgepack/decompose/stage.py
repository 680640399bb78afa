"""The decompose stage: W ≈ Q + L·R of every weight."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from edgepack import formats
from edgepack.calibration.sizes import matrices_by_block
from edgepack.calibration.stage import Calibrate, expert_facts, expert_warnings
from edgepack.calibration.streamed import clean, stream, sweep_disk, sweep_memory
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, keyed, precise
from edgepack.core.executor import Executor, most_at_once
from edgepack.core.hardware import working_memory
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.weight_files import load_about
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.decompose.caldera import needed_memory
from edgepack.decompose.weights import Item, decompose, decompose_streamed
from edgepack.grids.stage import Grids, OnGrids
from edgepack.planning.plan import PROCESS, READS, Chosen, Plan, Text

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
    device: torch.device = field(default=CPU, kw_only=True)

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
            **keyed(self._computes),
        }

    @property
    def _computes(self) -> torch.device:
        """The device; one without float64 runs no more than the blocks of the objective `layer`."""
        sequential = self.calibration is not None and self.calibration.hessians is None
        return self.device if sequential else precise(self.device)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        calibration, items = self.calibration, self.items(folder)
        if isinstance(calibration, Calibrate) and calibration.streams:
            yield from decompose_streamed(items, partial(stream, calibration, folder), executor)
            return
        clean(folder)  # of a run that did not keep H
        sequential = calibration is not None and calibration.hessians is None
        tokens = calibration.text.tokens if calibration and sequential else None
        yield from decompose(items, tokens, executor, self.device)

    def items(self, folder: Path) -> list[Item]:
        """Every matrix, to be decomposed into a folder."""
        hessians = self.calibration.hessians if self.calibration else None
        how = (self.damping, self.iterations, hessians, folder, precise(self.device))
        return [Item(self.model, name, fmt, *how) for name, fmt in self.chosen.formats.items()]

    def warnings(self) -> list[str]:
        """What float16 scales could not hold, by weight, and grids that were not taken."""
        remarks = self.chosen.remarks() if isinstance(self.chosen, OnGrids) else []
        found = expert_warnings(expert_facts(self.folder))
        return [*remarks, *found] + [
            f"{name}: {about[kind]} values {what}"
            for name, about in self.about(self.folder).items()
            for kind, what in LOSSES.items()
            if about.get(kind)
        ]

    def facts(self) -> dict[str, Any]:
        """What was found of experts, if H was made here."""
        return expert_facts(self.folder) if self.is_done else {}

    def about(self, folder: Path) -> dict[str, dict[str, Any]]:
        """What is known of every weight in a folder of this stage, or of one that goes on from it:
        errors, damping, method."""
        return {name: load_about(folder, name) for name in self.chosen.formats}

    def memory(self) -> int:
        """The largest weights that are worked on side by side."""
        room, cores, formats = (
            working_memory() - PROCESS,
            os.cpu_count() or 1,
            self.chosen.formats,
        )
        two_sided = self.calibration is not None and self.calibration.objective == "model"

        def needed(spec: WeightSpec) -> int:
            if spec.name not in formats:
                return 0
            sides = two_sided and spec.block is not None
            return needed_memory(spec.shape, rank=formats[spec.name].rank, two_sided=sides)

        groups = [list(self.model.specs.values())]
        if isinstance(self.calibration, Calibrate) and self.calibration.streams:
            groups = [*matrices_by_block(self.model), *([s] for s in groups[0] if s.block is None)]
        own = max(most_at_once(map(needed, group), room, cores) for group in groups)
        return max(own, sweep_memory(self.calibration))

    def disk(self) -> Disk:
        """Codes, scales and factors; and the sweep, if H is made here."""
        chosen = self.chosen.formats.items()
        kept = sum(packed_bytes(self.model.specs[name], fmt) for name, fmt in chosen)
        return sweep_disk(self.calibration, kept)


def packed_bytes(spec: WeightSpec, fmt: WeightFormat) -> int:
    """Bytes of a weight's file, nearly: a byte for each code, scales, factors, imatrix."""
    plugin = formats.get(fmt.Q)
    codes = 1 if plugin.bits_per_weight < 16 else 2
    scales = spec.numel * 4 // max(1, plugin.block_size) if plugin.block_size > 1 else 0
    factors = 2 * fmt.rank * sum(spec.shape)
    return codes * spec.numel + scales + factors + 4 * spec.shape[-1]


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
    given = (plan.model, calibration, plan.chosen, damping, iterations)
    return plan.adding(Decompose(*given, device=plan.device))
