"""The export stage: the files of a target, looked at by their runtime before they get a name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.calibration.sizes import FLOAT
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.values import pair_to_hf
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.weight_files import load_weight
from edgepack.core.weights import FactoredWeight
from edgepack.decompose.stage import Decompose
from edgepack.export.merge_factors import MergeFactors
from edgepack.export.peft import write_pairs
from edgepack.planning.plan import Plan
from edgepack.planning.target import Target
from edgepack.recover.stage import Recover
from edgepack.runtimes.agreement import agreement

CONTEXT = 64
"""Tokens that the files are tried with."""


@dataclass(frozen=True)
class Export(Stage):
    """The files that a build leaves, without the report. Once they stand in the output folder they
    are not kept here."""

    model: Checkpoint
    original: Checkpoint
    target: Target
    decomposed: Decompose | None
    recovered: Recover | None

    name = "export"

    @property
    def code(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: D102
        return ("edgepack.export", self.target.module, "edgepack.formats")

    @property
    def weights(self) -> Stage | None:
        """The stage whose weights are written; None: the model's own."""
        if isinstance(self.decomposed, MergeFactors):
            return self.decomposed
        return self.recovered or self.decomposed

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.model.key, *((self.weights.key,) if self.weights else ()))

    def output(self) -> str | None:  # noqa: D102
        return ""

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {"target": self.target.name, **self.target.options(self.model)}

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield Progress("export", 0, 1, "writing files")
        if self.target.packs:
            for path in folder.iterdir():  # of a killed run, perhaps not whole
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        formats = self.decomposed.chosen.formats if self.decomposed else {}
        norms = self.recovered.norms if self.recovered else {}
        yield from self.target.write(self.model, formats, self._load, norms, folder)
        if ranked := [name for name, fmt in formats.items() if fmt.rank]:
            base = str(self.original.source["model"])
            write_pairs(folder / "adapter", ranked, self._pair, base=base)
        if self.target.packs and self.target.can_open(formats):
            yield from self._verify(folder)

    def _load(self, name: str) -> FactoredWeight:
        assert self.weights is not None
        return load_weight(self.weights.folder, name)[0]

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        """lora_A and lora_B as PEFT has them."""
        weight = self._load(name)
        if weight.L is None or weight.R is None:
            raise ValueError(f"{name} has no factors")
        return pair_to_hf(self.model, name, weight.R.dequantize(), weight.L.dequantize())

    def _verify(self, folder: Path) -> Steps[None]:
        """The runtime, where it is installed, loads the files, and reads text as the model does."""
        yield Progress("export", 0, 1, "the files in their runtime")
        with self.target.written(folder, self.model).open(CONTEXT) as runtime:
            agreement(runtime, self.original.tokenizer)
            self.target.check_written(runtime)

    def memory(self) -> int:
        """The largest matrix with its codes, and all factors as float32 for PEFT's adapter."""
        specs = self.model.specs
        largest = max(spec.numel for spec in specs.values())
        if self.decomposed is None:
            return FLOAT * largest
        ranked = ((specs[n], f.rank) for n, f in self.decomposed.chosen.formats.items() if f.rank)
        return 3 * largest + FLOAT * sum(rank * sum(spec.shape) for spec, rank in ranked)

    def disk(self) -> Disk:
        """The files, with an adapter of the factors as float32."""
        formats = self.decomposed.chosen.formats if self.decomposed else {}
        specs = self.model.specs
        pairs = sum(fmt.rank * sum(specs[name].shape) for name, fmt in formats.items())
        files = self.target.files_size(self.model, formats) + FLOAT * pairs
        return Disk(files, files)

    def facts(self) -> dict[str, Any]:
        """What became of every weight."""
        if self.decomposed is None:
            return {"weights": {}}
        if not (self.weights and self.weights.is_done):
            return {}
        specs = self.model.specs
        found = self.decomposed.about(self.weights.folder)
        return {"weights": {n: {**about, "dtype": specs[n].dtype} for n, about in found.items()}}


def join(plan: Plan) -> Plan:
    """The plan with the files of its target: every plan has them."""
    decomposed, recovered = plan.find(Decompose), plan.find(Recover)
    decomposed = plan.find(MergeFactors) or decomposed
    stage = Export(plan.model, plan.original, plan.target, decomposed, recovered)
    return plan.adding(stage)
