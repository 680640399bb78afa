# ruff: noqa: D102  (documented in `Stage` and `Checkpoint`)
"""Weights with ΔW added, and the stage that packs them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack import formats
from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import Checkpoint
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import IMATRIX, save_tensors, weight_path
from edgepack.core.weights import QuantizedTensor
from edgepack.decompose.stage import Decompose
from edgepack.model.rewritten import Rewritten
from edgepack.planning.plan import Text


class Merged(Rewritten):
    """`base` with ΔW added to some weights. `vectors` is where norms and biases come from, if not
    from `base`: those that recovery has trained are in the packed files only."""

    def __init__(
        self,
        base: Checkpoint,
        deltas: Mapping[str, Lora],
        about: Mapping[str, Any],
        vectors: Checkpoint | None = None,
    ) -> None:
        super().__init__(base, base.dimensions, base.specs, about)
        self._deltas, self._vectors = deltas, vectors or base

    def tensor(self, name: str) -> Tensor:
        if not self.specs[name].is_matrix:
            return self._vectors.tensor(name)
        W = self.base.tensor(name)
        return W + self._deltas[name].delta() if name in self._deltas else W

    def quantized(self, name: str) -> QuantizedTensor | None:
        return None if name in self._deltas else self.base.quantized(name)


@dataclass(frozen=True)
class KeptHessians:
    """H of an earlier calibration whose text and model are not needed any more."""

    folder: Path
    objective: str

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def hessians(self) -> Path | None:
        return self.folder

    @property
    def text(self) -> Text:
        raise AssertionError("H is there, no text is needed")


@dataclass(frozen=True)
class Repack(Decompose):
    """Weights that the adapters change are decomposed anew; the others are those of `packed`, codes
    and factors alike. With `rounds_q`, ΔW is added to Q and rounded to nearest, and L·R stays."""

    packed: PackedBase
    deltas: Mapping[str, Lora]
    changed: frozenset[str]
    rounds_q: bool
    weights: Mapping[str, Any]
    """The packed model's manifest on every weight."""
    about_merge: Mapping[str, Any]

    code = (*Decompose.code, "edgepack.adapter_merge.stage")

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, self.model.key, self.packed.identity.digest)

    def options(self) -> dict[str, Any]:
        return super().options() | {"changed": sorted(self.changed), "rounds_q": self.rounds_q}

    def run(self, folder: Path, executor: Executor) -> Steps[None]:
        yield Progress(self.name, 0, 1, "weights that stay as they are")
        for name in self.chosen.formats:
            path = weight_path(folder, name)
            if (self.rounds_q or name not in self.changed) and not path.exists():
                self._keep(folder, name)
        yield from super().run(folder, executor)

    def _keep(self, folder: Path, name: str) -> None:
        """Write a packed weight as it is, or with ΔW in Q rounded to nearest; one in a format that
        is not edgepack's, or that loses its factors, is decomposed."""
        weight = self.packed.weight(name)
        if weight is None or weight.rank != self.chosen.formats[name].rank:
            return
        if name in self.deltas:
            Q = weight.Q.dequantize() + self.deltas[name].delta()
            weight = replace(weight, Q=formats.get(weight.Q.format).quantize(Q))
        about = {key: value for key, value in self.weights[name].items() if key != "dtype"}
        columns = {IMATRIX: torch.ones(weight.Q.shape[1])}
        save_tensors(weight_path(folder, name), weight.tensors() | columns, about)

    def facts(self) -> dict[str, Any]:
        return {"merged": dict(self.about_merge)}
