"""L and R as a GGUF adapter stores them, by Hugging Face name and in its order of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from edgepack.checkpoint import Checkpoint, gguf_rows
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import plugins
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import EdgepackError

SUFFIXES = {"lora_a": "R", "lora_b": "L"}
ALPHA = "adapter.lora.alpha"


class GgufFactors:
    """A LoRA adapter file of llama.cpp's for the model `checkpoint`. Headers are read at once,
    values on demand."""

    def __init__(self, path: Path, checkpoint: Checkpoint) -> None:
        self.path, self.checkpoint = path, checkpoint
        self._header = GgufHeader(path)
        self.ranks: Mapping[str, int] = dict(self._read_ranks())
        """Weight → rank."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """Key → value."""
        return {key: value for key, (value, *_) in self._header.metadata.items()}

    def types(self, name: str) -> tuple[str, str]:
        """The stored types of L and R of a weight, as formats are called."""
        stem, tensors = self._stem(name), self._header.tensors
        L, R = tensors[f"{stem}.lora_b"], tensors[f"{stem}.lora_a"]
        return L.kind.name.lower(), R.kind.name.lower()

    def pair(self, name: str) -> tuple[QuantizedTensor, QuantizedTensor]:
        """L ``[out, rank]`` and R ``[rank, in]`` of a weight."""
        stem = self._stem(name)
        spec = self.checkpoint.specs[name]
        family, dimensions = self.checkpoint.architecture, self.checkpoint.dimensions
        order = gguf_rows(family, dimensions, spec.role)
        L, R = self._read(f"{stem}.lora_b"), self._read(f"{stem}.lora_a")
        return (L if order is None else L.permute_rows(torch.argsort(order))), R

    def scale(self, name: str) -> float:
        """What llama.cpp multiplies L·R by: alpha / rank, or 1 where alpha is 0."""
        alpha = self.metadata.get(ALPHA, 0.0)
        if not isinstance(alpha, float) or not math.isfinite(alpha):
            raise EdgepackError(
                f"{self.path.name}: {ALPHA} is no finite float32", hint="convert the adapter again"
            )
        return alpha / self.ranks[name] if alpha else 1.0

    def _stem(self, name: str) -> str:
        spec = self.checkpoint.specs[name]
        return self.checkpoint.architecture.gguf_name(spec.role, spec.block)

    def _read(self, tensor: str) -> QuantizedTensor:
        stored, data = self._header.tensors[tensor], self._header.bytes_of(tensor)
        kind = stored.kind.name.lower()
        if kind in ("f32", "bf16"):
            dtype = torch.float32 if kind == "f32" else torch.bfloat16
            return QuantizedTensor("f32", data.view(dtype).reshape(stored.shape).float(), {})
        if kind not in plugins.names("formats"):
            raise EdgepackError(
                f"{self.path.name}: {tensor} is stored as {stored.kind.name}, which is not read",
                hint="convert the adapter with --outtype f16",
            )
        parsed: QuantizedTensor = plugins.find("formats", kind).parse(
            data.reshape(stored.shape[0], -1)
        )
        return parsed

    def _read_ranks(self) -> list[tuple[str, int]]:
        """Every weight that the file changes; tensors that are no part of the model are refused."""
        wanted = {self._stem(name): name for name in self.checkpoint.specs}
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for tensor, stored in self._header.tensors.items():
            stem, _, suffix = tensor.rpartition(".")
            if stem not in wanted or suffix not in SUFFIXES:
                raise EdgepackError(
                    f"{self.path.name}: {tensor} belongs to no weight of this model",
                    hint="the adapter was made for another model",
                )
            found.setdefault(wanted[stem], {})[SUFFIXES[suffix]] = stored.shape
        return [(name, self._rank(name, shapes)) for name, shapes in found.items()]

    def _rank(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        out, columns = self.checkpoint.specs[name].shape
        rank = shapes["R"][0] if "R" in shapes else 0
        if shapes != {"R": (rank, columns), "L": (out, rank)}:
            raise EdgepackError(
                f"{self.path.name}: the factors of {name} do not fit its {out} × {columns}",
                hint="the adapter was made for another model",
            )
        return rank
