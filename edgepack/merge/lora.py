"""A PEFT adapter as something that is added to a model's weights as they are read.

W + s·B·A with PEFT's s = alpha / r (alpha / √r with rslora), in float32; whole modules
(`modules_to_save`) take the place of the model's. Adapters for packed models (`edgepack.adapters`)
are stricter: they change linear layers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, promote_types

from edgepack.checkpoint.digests import combine
from edgepack.checkpoint.peft import CONFIG, PREFIX, WEIGHTS, PeftConfig
from edgepack.checkpoint.shards import READABLE, Place, header
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core.untrusted import quote, shorten, validate
from edgepack.errors import CheckpointError

PAIRS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_A.default.weight": "A",
    "lora_B.default.weight": "B",
    "lora_embedding_A": "A of an embedding",
    "lora_embedding_B": "B of an embedding",
}
"""End of a tensor's name → what it is of the pair."""
PLAIN = "merge the adapter with PEFT (merge_and_unload), and name the folder that it writes"


class _Config(PeftConfig):
    """The fields of adapter_config.json that are read."""

    fan_in_fan_out: bool | None = False


@dataclass(frozen=True)
class _Pair:
    """Where the two halves of ΔW lie; `scale` is PEFT's."""

    A: Place
    B: Place
    scale: float
    transposed: bool


@dataclass(frozen=True)
class LoraAdapter:
    """A PEFT folder; `name` is the adapter's in messages."""

    folder: Path
    name: str
    revision: str | None = None

    @cached_property
    def _files(self) -> SourceFiles:
        return SourceFiles()

    @cached_property
    def _config(self) -> _Config:
        content = self._files.read_json(self.folder / CONFIG)
        config = validate(_Config, content, f"{self.name}: {CONFIG}", CheckpointError)
        faults = {
            f"is of type {quote(config.peft_type)}": config.peft_type != "LORA",
            "is a DoRA adapter": config.use_dora,
            "repeats layers (layer_replication)": config.layer_replication,
        }
        for what, holds in faults.items():
            if holds:
                raise CheckpointError(f"{self.name}: {what}", hint=PLAIN)
        return config

    @cached_property
    def _tensors(self) -> Mapping[str, Place]:
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise CheckpointError(
                f"{self.name}: there is no {WEIGHTS}",
                hint="save the adapter with safe_serialization=True",
            )
        return header(path, self._files)

    @cached_property
    def changes(self) -> Mapping[str, _Pair | Place]:
        """Weight → the pair that is added to it, or what takes its place."""
        halves: dict[str, dict[str, Place]] = {}
        whole: dict[str, Place] = {}
        for key, place in self._tensors.items():
            if place.dtype not in READABLE:
                raise CheckpointError(
                    f"{self.name}: {shorten(key, 80)} is stored as {place.dtype}",
                    hint="edgepack reads " + ", ".join(READABLE),
                )
            name = key.removeprefix(PREFIX)
            end = next((end for end in PAIRS if name.endswith("." + end)), None)
            if end is not None:
                halves.setdefault(name.removesuffix("." + end), {})[PAIRS[end]] = place
            elif "lora_" in name or not key.startswith(PREFIX):
                raise CheckpointError(
                    f"{self.name}: {shorten(key, 80)} is no part of a plain LoRA", hint=PLAIN
                )
            else:  # PEFT keeps a saved module below this name
                whole[name.replace(".modules_to_save", "")] = place
        return {f"{m}.weight": self._pair(m, parts) for m, parts in halves.items()} | whole

    def _pair(self, module: str, parts: Mapping[str, Place]) -> _Pair:
        embedding = "A of an embedding" in parts
        keys = ("A of an embedding", "B of an embedding") if embedding else ("A", "B")
        if set(parts) != set(keys):
            raise CheckpointError(
                f"{self.name}: {shorten(module, 80)} has only {', '.join(sorted(parts))}",
                hint="the adapter is incomplete: fetch it again",
            )
        A, B = (parts[key] for key in keys)
        config = self._config
        scale = config.scale(module, A.shape[0])
        return _Pair(A, B, scale, embedding or bool(config.fan_in_fan_out))

    def check(self, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
        """Refuse an adapter that changes weights that the model does not have, or that have another
        shape there."""
        for name, change in self.changes.items():
            shape = shapes.get(name)
            if shape is None:
                raise CheckpointError(
                    f"{self.name}: changes {shorten(name, 80)}, which {model} does not have",
                    hint="the adapter was made for another model",
                )
            own = _shape(change)
            if own != shape:
                raise CheckpointError(
                    f"{self.name}: {shorten(name, 80)} does not fit {model} ({list(own)} for "
                    f"{list(shape)})",
                    hint="the adapter was made for another model",
                )

    def apply(self, name: str, W: Tensor) -> Tensor:
        """The weight with the adapter: in W's type, computed in float32."""
        change = self.changes.get(name)
        if change is None:
            return W
        if isinstance(change, Place):
            return change.read(self._files).to(W.dtype)
        A, B = (part.read(self._files).float() for part in (change.A, change.B))
        delta = (B @ A).mul_(change.scale)
        delta = delta.to(promote_types(delta.dtype, W.dtype))
        return delta.T.add(W).to(W.dtype) if change.transposed else delta.add_(W).to(W.dtype)

    def working_bytes(self, name: str) -> int:
        """Bytes that `apply` needs beside W and the result."""
        change = self.changes.get(name)
        return 0 if change is None else 4 * math.prod(_shape(change))

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """sha256 of its files."""
        return {name: self._files.sha256(self.folder / name) for name in (CONFIG, WEIGHTS)}

    @property
    def key(self) -> str:
        """Hex digest of its content."""
        return combine(dict(self.digests))


def _shape(change: _Pair | Place) -> tuple[int, ...]:
    """Shape of the weight that a change is for."""
    if isinstance(change, Place):
        return change.shape
    if len(change.A.shape) != 2 or len(change.B.shape) != 2:
        return (0,)
    if change.A.shape[0] != change.B.shape[1]:
        return (0,)
    shape = (change.B.shape[0], change.A.shape[1])
    return shape[::-1] if change.transposed else shape


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()
