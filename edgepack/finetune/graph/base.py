"""The packed model that is trained on: Q of every weight, and its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint._layout import gguf_rows
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import plugins
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.untrusted import shorten
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat, WeightSpec
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.export import _onnx_pack as pack
from edgepack.export.onnx_checkpoint import OnnxCheckpoint
from edgepack.export.values import F32


@dataclass(frozen=True)
class Base:
    """A packed model: its dimensions, the formats of every matrix, a function that reads one."""

    checkpoint: Checkpoint
    formats: dict[str, WeightFormat]
    load: Callable[[str], FactoredWeight]


def open_base(folder: Path) -> Base:
    """Read an output folder with a GGUF or an ONNX model.

    Raises `EdgepackError` for formats that ONNX cannot hold, and names the first such weight.
    """
    base = _open(folder)
    for name, known in base.formats.items():
        for fmt in (known.Q, known.L, known.R):
            if fmt not in (None, F32, *pack.WHOLE_ROWS) and pack.layout_of(str(fmt)) is None:
                place = shorten(str(folder), 100)
                raise EdgepackError(
                    f"{place}: {name} is stored as {fmt}, which ONNX cannot hold",
                    hint="build the model with formats such as q4_0, q8_0 or int4_g32",
                )
    return base


def _open(folder: Path) -> Base:
    artifact = Artifact.open(folder) if (folder / MANIFEST).is_file() else None
    if artifact is None or artifact.base.suffix != ".gguf":
        onnx = OnnxCheckpoint(folder)
        return Base(onnx, dict(onnx.formats), onnx.weight)
    checkpoint = GgufCheckpoint(artifact.base, str(artifact.base))
    factors = _GgufFactors(artifact.factors, checkpoint) if artifact.factors else None
    formats, known = {}, plugins.names("formats")
    for spec in checkpoint.specs.values():
        if len(spec.shape) == 2:
            fmt = spec.dtype.lower()
            given = factors.formats(spec) if factors else None
            formats[spec.name] = WeightFormat(fmt if fmt in known else F32, *(given or ()))

    def load(name: str) -> FactoredWeight:
        Q = checkpoint.quantized(name) or QuantizedTensor(F32, checkpoint.tensor(name), {})
        pair = factors.read(checkpoint.specs[name]) if factors else None
        return FactoredWeight(Q, *(pair or (None, None)))

    return Base(checkpoint, formats, load)


class _GgufFactors:
    """L and R from a LoRA adapter in GGUF, with Hugging Face's order of rows."""

    def __init__(self, path: Path, checkpoint: GgufCheckpoint) -> None:
        self._header, self._base = GgufHeader(path), checkpoint

    def formats(self, spec: WeightSpec) -> tuple[int, str, str] | None:
        """Rank and formats of L and R; None if the weight has none."""
        right, left = (self._header.tensors.get(name) for name in self._names(spec))
        if right is None or left is None:
            return None
        rank = right.shape[0]
        if left.shape != (spec.shape[0], rank) or right.shape != (rank, spec.shape[1]):
            raise CheckpointError(
                f"factors.gguf: the factors of {spec.name} do not fit its shape {list(spec.shape)}",
                hint="build the folder again",
            )
        return rank, left.kind.name.lower(), right.kind.name.lower()

    def read(self, spec: WeightSpec) -> tuple[QuantizedTensor, QuantizedTensor] | None:
        """L and R."""
        found = self.formats(spec)
        if found is None:
            return None
        right, left = self._names(spec)
        L, R = self._tensor(left, found[1]), self._tensor(right, found[2])
        order = gguf_rows(self._base.architecture, self._base.dimensions, spec.role)
        return (L if order is None else L.permute_rows(order.argsort())), R

    def _tensor(self, name: str, fmt: str) -> QuantizedTensor:
        data = self._header.bytes_of(name).reshape(self._header.tensors[name].shape[0], -1)
        parsed: QuantizedTensor = plugins.find("formats", fmt).parse(data)
        return parsed

    def _names(self, spec: WeightSpec) -> tuple[str, str]:
        name = self._base.architecture.gguf_name(spec.role, spec.block)
        return f"{name}.lora_a", f"{name}.lora_b"
