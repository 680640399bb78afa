"""An adapter as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.adapters.gguf_factors import GgufFactors
from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import QuantizedTensor, WeightFormat
from edgepack.errors import EdgepackError
from edgepack.export.gguf import write_factors
from edgepack.runtimes.gguf_check import HOLDS_FACTORS

Dtype = Literal["f16", "f32"]
TYPES = {"f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Pair:
    """lora_B and lora_A as llama.cpp's L and R."""

    L: QuantizedTensor
    R: QuantizedTensor

    @property
    def format(self) -> WeightFormat:
        """How they are stored."""
        return WeightFormat("", self.R.shape[0], self.L.format, self.R.format)


def write(
    path: Path,
    loras: Mapping[str, Lora],
    checkpoint: Checkpoint,
    marks: Mapping[str, str],
    dtype: Dtype,
) -> Path:
    """Write pairs by weight; `marks` are further texts for the metadata."""
    pairs = {name: _stored(lora, dtype) for name, lora in loras.items()}
    return _write(path, pairs, checkpoint, marks)


def tuned(loras: Mapping[str, Lora], base: PackedBase, dtype: Dtype) -> dict[str, Pair] | None:
    """L·R + ΔW of every weight that has factors, if none of them gets a larger rank; else None:
    more than L and R was changed."""
    if not loras or not set(loras) <= set(base.ranks):
        return None
    found = {}
    for name, rank in base.ranks.items():
        L, R = base.pair(name)
        if name not in loras:
            found[name] = Pair(L, R)
            continue
        new = Lora.joined([Lora(R.dequantize(), L.dequantize()), loras[name]]).reduced()
        if new.rank > rank:
            return None
        found[name] = _stored(new, dtype)
    return found


def write_tuned(
    path: Path, pairs: Mapping[str, Pair], checkpoint: Checkpoint, marks: Mapping[str, str]
) -> Path:
    """Write factors in place of the base's."""
    return _write(path, pairs, checkpoint, {**marks, HOLDS_FACTORS: "true"})


def read(path: Path, checkpoint: Checkpoint) -> tuple[dict[str, Lora], Mapping[str, object]]:
    """Pairs with llama.cpp's scale in them, and the metadata."""
    factors = GgufFactors(path, checkpoint)
    if HOLDS_FACTORS in factors.metadata:
        raise EdgepackError(
            f"{path.name}: holds L and R too, and is no adapter on top of them",
            hint="give the folder that it is in, or adapter.gguf beside it",
        )
    found = {}
    for name in factors.ranks:
        L, R = (part.dequantize() for part in factors.pair(name))
        if not (torch.isfinite(L).all() and torch.isfinite(R).all()):
            raise EdgepackError(
                f"{path.name}: the factors of {name} are not finite", hint="train it again"
            )
        found[name] = Lora(R, L).scaled_evenly(factors.scale(name))
    return found, factors.metadata


def _stored(lora: Lora, dtype: Dtype) -> Pair:
    def part(value: Tensor) -> QuantizedTensor:
        return QuantizedTensor(dtype, value.to(TYPES[dtype]).contiguous(), {})

    return Pair(part(lora.lora_B), part(lora.lora_A))


def _write(
    path: Path, pairs: Mapping[str, Pair], checkpoint: Checkpoint, marks: Mapping[str, str]
) -> Path:
    formats = {name: pair.format for name, pair in pairs.items()}
    write_factors(path, checkpoint, formats, pairs.__getitem__, marks)
    return path
