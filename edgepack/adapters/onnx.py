"""An adapter as values for the factors of an ONNX graph: [L, B]·[R; A], of the least rank. (The
change of L and R themselves has twice their rank, but the sum has theirs.)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.runtimes.onnx_adapters import (
    GIVEN,
    Array,
    factors_file,
    names_of,
    no_room,
    read_factors,
)

NAME = "adapter"


def check_room(base: PackedBase, names: Iterable[str]) -> None:
    """Refuse weights whose factors the graph does not let anybody replace."""
    place = factors_file(base.file)
    stored = read_factors(place) if place else {}
    for name in names:
        module = name.removesuffix(".weight")
        if names_of(module, stored) is None:
            raise no_room(base.folder, module)


def write(
    folder: Path, loras: Mapping[str, Lora], base: PackedBase, about: Mapping[str, str]
) -> Path:
    """Write adapter.onnx_adapter, with the factors that it changes, or for graphs that take all
    factors as inputs adapter.safetensors, with all of them; its path."""
    from edgepack.export.onnx import write_factors

    place = factors_file(base.file)
    stored = read_factors(place) if place else {}
    values: dict[str, Array] = dict(stored) if place and place.name == GIVEN else {}
    for name, lora in loras.items():
        module = name.removesuffix(".weight")
        names = names_of(module, stored)
        if names is None:
            raise no_room(base.folder, module)
        A, B = (_float(stored[part]).T for part in names)
        parts = _parts(Lora.joined([Lora(A, B), lora]).reduced(), stored[names[0]].dtype)
        values |= zip(names, parts, strict=True)
    path = folder / f"{NAME}{place.suffix if place else ''}"
    write_factors(path, values, about)
    return path


def _parts(lora: Lora, dtype: Any) -> list[Array]:
    """A pair as a graph takes it: transposed, in the type of its factors."""
    pair = (lora.lora_A, lora.lora_B)
    with np.errstate(over="ignore"):  # infinities are refused when they are written
        return [np.ascontiguousarray(part.T.numpy().astype(dtype)) for part in pair]


def _float(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).float()
