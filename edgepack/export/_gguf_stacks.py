"""Experts' weights as the stacks that a GGUF has of them: one tensor of one format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from edgepack.core.weights import QuantizedTensor, WeightSpec
from edgepack.errors import ExportError
from edgepack.formats.base import GgmlFormat

T = TypeVar("T")
Load = Callable[[str], QuantizedTensor | Tensor]


def in_stacks(specs: Iterable[WeightSpec]) -> list[list[WeightSpec]]:
    """Weights in order: each alone, or with those of the other experts, the first first."""
    found: dict[object, list[WeightSpec]] = {}
    for spec in specs:
        found.setdefault(spec.stack or spec.name, []).append(spec)
    return [sorted(several, key=lambda spec: spec.expert or 0) for several in found.values()]


def one_format(several: list[WeightSpec], formats: Mapping[str, T]) -> T:
    """The format of all weights of a stack."""
    found = {formats[spec.name] for spec in several}
    if len(found) > 1:
        raise ExportError(
            f"{several[0].name} and the other experts' {several[0].role} have several formats",
            hint="a GGUF stores them as one tensor: give all of them one format and one rank",
        )
    return found.pop()


@dataclass(frozen=True)
class Stack:
    """Reads the values of several weights as one tensor ``[experts, rows, …]``."""

    read: tuple[Callable[[], QuantizedTensor | Tensor], ...]
    format: GgmlFormat | None

    def __call__(self) -> Tensor:
        """Float32 values, or bytes in the format."""
        return torch.stack([self._packed(read()) for read in self.read])

    def _packed(self, value: QuantizedTensor | Tensor) -> Tensor:
        if not isinstance(value, QuantizedTensor):
            return value
        if self.format is None or value.format != self.format.name:
            raise ValueError(f"{value.format}, announced {self.format and self.format.name}")
        return self.format.pack_by_rows(value)


def reading(
    several: list[WeightSpec], load: Load, fmt: GgmlFormat | None
) -> Callable[[], QuantizedTensor | Tensor]:
    """What reads the weight, or all weights of a stack."""
    parts = tuple(partial(load, spec.name) for spec in several)
    return parts[0] if several[0].expert is None else Stack(parts, fmt)
