"""One weight after the other of a merge that is weighted by Fisher matrices.

What a model loses is measured in nats a token of its own text, divided by what all its weights
together have at stake there (its Fisher mass, Σ tr H). Without that a model that is unsure of its
text, whose gradients are large, would count more than one that is sure, and `weight` would not say
how much a model counts. Within a model the weights keep their proportions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.moments import load_hessian, trace
from edgepack.calibration.stage import Calibrate
from edgepack.core.disk import atomic
from edgepack.core.weights import Hessian, WeightSpec
from edgepack.merge.fisher.choose import Found, choose
from edgepack.merge.fisher.solve import Term
from edgepack.merge.layout import MergedTensor
from edgepack.merge.methods.base import Job

FILE, LINES = "fisher.json", "fisher.lines"
"""What was found for every weight, and the same while the merge is being made."""
FLOAT, DOUBLE = 4, 8


@dataclass
class Weighting:
    """The calibrations of a merge, by the place of each model. `folder` gets a line for every
    weight."""

    calibrations: Mapping[int, Calibrate]
    output_side: bool
    folder: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def applies(self, tensor: MergedTensor) -> bool:
        """Whether a tensor has H in every model."""
        return all(
            (spec := self._spec(operand.input, operand.name)) is not None and has_hessian(spec)
            for operand in tensor.operands
        )

    def needs(self, tensor: MergedTensor) -> int:
        """Bytes of memory beside those of the plain merge."""
        if not self.applies(tensor):
            return 0
        out, columns = tensor.shape
        sides = columns**2 + (out**2 if self.output_side else 0)
        per_model = 2 * sides + tensor.numel
        loose = 6 * tensor.numel + (3 * sides if self.output_side else columns**2)
        return len(tensor.operands) * FLOAT * per_model + DOUBLE * loose

    def improve(self, job: Job, plain: Tensor, tensor: MergedTensor) -> Tensor:
        """The merged tensor from the plain one: what held-out tokens choose is added to it, times
        what the method multiplies the mean by."""
        weights = job.numbers("weight")
        counting = [i for i, weight in enumerate(weights) if weight > 0]
        if len(counting) < 2:
            return plain
        total = sum(weights)
        mean = torch.zeros(plain.shape)
        for i in counting:
            mean.add_(job.tensors[i].float(), alpha=weights[i] / total)
        differences = [job.tensors[i].float() - mean for i in counting]
        train, held_out = [], []
        for i, E in zip(counting, differences, strict=True):
            H = self._hessian(tensor.operands[i].input, tensor.operands[i].name)
            weight = weights[i] / total / self._mass(tensor.operands[i].input)
            train.append(Term(E, H.train, H.out_train, weight))
            held_out.append(Term(E, H.held_out, H.out_held_out, weight))
        found = self.solve(train, held_out)
        self._note(tensor.name, {"plain": found.plain, "cost": found.cost})
        factor = float(job.parameters.get("lambda", 1.0))
        if not job.parameters["normalize"]:
            factor *= total
        return plain + factor * found.D.reshape(plain.shape)

    def solve(self, train: Sequence[Term], held_out: Sequence[Term]) -> Found:
        """What is added to the plain mean; in the metric of the text, judged by its held-out
        tokens."""
        return choose(train, held_out)

    def finish(self) -> None:
        """Write what was found for all weights."""
        assert self.folder is not None
        lines = self.folder / LINES
        found: dict[str, Any] = {}
        if lines.exists():
            for line in lines.read_text(encoding="utf-8").splitlines():
                try:
                    found |= dict([json.loads(line)])
                except ValueError:  # of a killed run
                    continue
        if found or not (self.folder / FILE).exists():
            with atomic(self.folder / FILE) as temporary:
                temporary.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
        lines.unlink(missing_ok=True)

    def _hessian(self, place: int, name: str) -> Hessian:
        spec = self._spec(place, name)
        assert spec is not None
        return load_hessian(self.calibrations[place].folder / str(spec.block), spec.part)

    def _spec(self, place: int, name: str) -> WeightSpec | None:
        return self.calibrations[place].model.specs.get(name)

    def _mass(self, place: int) -> float:
        with self._lock:
            return self._masses[place]

    @cached_property
    def _masses(self) -> dict[int, float]:
        """Σ tr H over all weights of each model; 1 for one that has nothing at stake."""
        return {
            place: sum(
                trace(stage.folder / str(spec.block), spec.part)
                for spec in stage.model.specs.values()
                if has_hessian(spec)
            )
            or 1.0
            for place, stage in self.calibrations.items()
        }

    def _note(self, name: str, found: dict[str, float]) -> None:
        """Before the tensor is written, so that no tensor of a killed run lacks its line."""
        if self.folder is not None:
            with self._lock, (self.folder / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, found]) + "\n")


def has_hessian(spec: WeightSpec) -> bool:
    """Whether calibration keeps H for a weight."""
    return spec.role in LINEAR_ROLES and spec.block is not None


def summary(folder: Path) -> dict[str, Any]:
    """What the finished file says: held-out costs of the plain mean and of the result, summed over
    all weights. In shares of the models' Fisher mass, so that only their ratio has a meaning."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    plain = sum(entry["plain"] for entry in found.values())
    cost = sum(entry["cost"] for entry in found.values())
    kept = sum(entry["cost"] >= entry["plain"] for entry in found.values())
    return {"held_out_cost": cost / plain if plain else 1.0, "stayed_plain": kept}
