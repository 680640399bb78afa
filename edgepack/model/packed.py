# ruff: noqa: D102  (documented in `Checkpoint`)
"""A packed model as a checkpoint: Q + L·R multiplied out, one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from edgepack.checkpoint.base import Checkpoint
from edgepack.core.weights import FactoredWeight, QuantizedTensor
from edgepack.model.rewritten import Rewritten

Load = Callable[[str], FactoredWeight | None]


class Packed(Rewritten):
    """`base` with the matrices that `load` has. Those without factors keep their codes."""

    def __init__(self, base: Checkpoint, load: Load, about: Mapping[str, Any]) -> None:
        super().__init__(base, base.dimensions, base.specs, about)
        self._load = load

    def tensor(self, name: str) -> Tensor:
        weight = self._load(name) if self.specs[name].is_matrix else None
        return self.base.tensor(name) if weight is None else weight.dense()

    def quantized(self, name: str) -> QuantizedTensor | None:
        weight = self._load(name)
        return weight.Q if weight is not None and not weight.rank else None
