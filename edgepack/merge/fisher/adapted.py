# ruff: noqa: D102  (documented in `Checkpoint`)
"""A model of a merge as a checkpoint to calibrate, its adapter added as it is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgepack.checkpoint import Checkpoint
from edgepack.merge.inputs import Input
from edgepack.model.rewritten import Rewritten


class Adapted(Rewritten):
    """A model with a LoRA adapter."""

    def __init__(self, model: Input) -> None:
        assert model.checkpoint is not None
        assert model.adapter is not None
        base = model.checkpoint
        self.input = model
        super().__init__(base, base.dimensions, base.specs, {"lora": model.adapter.key})

    def __reduce__(self) -> tuple[Any, ...]:
        return Adapted, (self.input,)

    @property
    def original(self) -> Checkpoint:
        return self

    def tensor(self, name: str) -> Tensor:
        return self.input.read(name).float()


def checkpoint_of(model: Input) -> Checkpoint | None:
    """What is calibrated; None for a family that edgepack does not know."""
    return model.checkpoint if model.adapter is None else _adapted(model)


def _adapted(model: Input) -> Checkpoint | None:
    return None if model.checkpoint is None else Adapted(model)
