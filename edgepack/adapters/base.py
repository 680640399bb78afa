"""A packed model as the base of adapters: Q, L and R of an output folder, read weight by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.adapters.adapter import BaseId
from edgepack.adapters.gguf_factors import GgufFactors
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.core.adapters import weight_files
from edgepack.core.artifact import Artifact
from edgepack.core.weights import FactoredWeight, QuantizedTensor
from edgepack.errors import EdgepackError, missing_extra

if TYPE_CHECKING:
    from edgepack.export.onnx_checkpoint import OnnxCheckpoint

GGUF, ONNX = "gguf", "onnx"
FACTORS = "factors.gguf"


@dataclass(frozen=True)
class PackedBase:
    """The files of one packed model in `folder`. `files` are those with weights, name → sha256."""

    folder: Path
    name: str
    target: str
    files: Mapping[str, str]

    @staticmethod
    def open(folder: Path) -> PackedBase:
        """An output folder, whose files are checked against its manifest."""
        artifact = Artifact.open(folder)
        name = str(artifact.manifest["model"]["model"])
        files = weight_files(artifact.manifest)
        return PackedBase(folder, name, artifact.manifest["target"], files)

    @property
    def identity(self) -> BaseId:
        """What adapters remember of it."""
        return BaseId.of(self.name, self.files)

    @property
    def file(self) -> Path:
        """The file that a runtime opens."""
        names = [name for name in self.files if name.endswith((".gguf", ".onnx"))]
        return self.folder / min(names)

    @property
    def factors(self) -> Path | None:
        """The GGUF adapter of L and R; None at rank 0 and for ONNX."""
        return self.folder / FACTORS if FACTORS in self.files else None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Q as a checkpoint: dimensions, tokenizer, and its matrices dequantized one at a time."""
        if self.target == GGUF:
            return GgufCheckpoint(self.file, self.name)
        if self._onnx is not None:
            return self._onnx
        raise EdgepackError(
            f"{self.folder}: a {self.target} folder has no packed weights to train adapters on",
            hint="build the recipe with --target gguf or --target onnx",
        )

    @cached_property
    def _onnx(self) -> OnnxCheckpoint | None:
        if self.target != ONNX:
            return None
        try:
            from edgepack.export.onnx_checkpoint import OnnxCheckpoint
        except ImportError:
            raise missing_extra("onnx", "onnx") from None
        return OnnxCheckpoint(self.folder)

    @cached_property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """The weights that an adapter may change, with their shapes ``[out, in]``: all that are
        multiplied by, embeddings excepted (also where they are the head)."""
        return {
            name: (spec.shape[0], spec.shape[1])
            for name, spec in self.checkpoint.specs.items()
            if spec.is_matrix and not spec.role.endswith("_embd")
        }

    @cached_property
    def stored_factors(self) -> GgufFactors | None:
        """The file of L and R; None where there is none, and for ONNX."""
        return GgufFactors(self.factors, self.checkpoint) if self.factors else None

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Weight → rank of its L and R, for the weights that have any."""
        if self._onnx is not None:
            formats = self._onnx.formats.items()
            return {name: known.rank for name, known in formats if known.rank}
        return self.stored_factors.ranks if self.stored_factors else {}

    def pair(self, name: str) -> tuple[QuantizedTensor, QuantizedTensor]:
        """L ``[out, rank]`` and R ``[rank, in]`` of a weight, as they are stored."""
        if self._onnx is not None:
            found = self._onnx.factors(name)
        else:
            found = self.stored_factors.pair(name) if self.stored_factors else None
        if found is None:
            raise KeyError(name)
        return found

    def weight(self, name: str) -> FactoredWeight | None:
        """Q, L and R of a weight as stored; None if Q is in no format of edgepack's."""
        Q = self.checkpoint.quantized(name)
        if Q is None:
            return None
        return FactoredWeight(Q, *self.pair(name)) if name in self.ranks else FactoredWeight(Q)
