"""The packed model that is trained on: Q of every weight, and its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepack.adapters.base import GGUF, PackedBase
from edgepack.checkpoint import Checkpoint
from edgepack.core.artifact import MANIFEST
from edgepack.core.untrusted import shorten
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat
from edgepack.errors import EdgepackError
from edgepack.export import _onnx_pack as pack
from edgepack.export.onnx_checkpoint import OnnxCheckpoint
from edgepack.export.values import F32


@dataclass(frozen=True)
class Base:
    """A packed model: its dimensions, the formats of every matrix, a function that reads one, and
    for an output folder what its adapters know it by."""

    checkpoint: Checkpoint
    formats: dict[str, WeightFormat]
    load: Callable[[str], FactoredWeight]
    digest: str | None = None


def open_base(folder: Path) -> Base:
    """Read an output folder with a GGUF or an ONNX model.

    Raises `EdgepackError` for formats that ONNX cannot hold, and names the first such weight.
    """
    base = _open(folder)
    family = base.checkpoint.architecture
    parts = "experts" if family.router else ""
    if family.kind_roles:
        parts = f"blocks of several kinds ({', '.join(family.kind_roles)})"
    if parts:
        raise EdgepackError(
            f"{shorten(str(folder), 100)}: {parts} have no training graph",
            hint="use edgepack finetune",
        )
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
    packed = PackedBase.open(folder) if (folder / MANIFEST).is_file() else None
    if packed is None or packed.target != GGUF:
        onnx = OnnxCheckpoint(folder)
        digest = packed.identity.digest if packed else None
        return Base(onnx, dict(onnx.formats), onnx.weight, digest)
    return _of_gguf(packed)


def _of_gguf(packed: PackedBase) -> Base:
    checkpoint, formats = packed.checkpoint, {}

    def load(name: str) -> FactoredWeight:
        Q = checkpoint.quantized(name) or QuantizedTensor(F32, checkpoint.tensor(name), {})
        return FactoredWeight(Q, *(packed.pair(name) if name in packed.ranks else ()))

    for spec in checkpoint.specs.values():
        if len(spec.shape) == 2:
            whole = spec.dtype in ("F32", "BF16")
            rank, pair = packed.ranks.get(spec.name, 0), tuple[str, ...]()
            if rank:
                pair = tuple(factor.format for factor in packed.pair(spec.name))
            fmt = F32 if whole else spec.dtype.lower()
            formats[spec.name] = WeightFormat(fmt, rank, *pair)
    return Base(checkpoint, formats, load, packed.identity.digest)
