"""Models that can be run: exported files, files from elsewhere, or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgepack.checkpoint import Checkpoint
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.errors import EdgepackError
from edgepack.model.decoder import Decoder
from edgepack.runtimes.base import Runtime, Scorer
from edgepack.runtimes.llama_cpp import LlamaCpp
from edgepack.runtimes.onnx_runtime import OnnxRuntime, data_files, model_file
from edgepack.runtimes.torch_decoder import TorchDecoder


class Runnable(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def bytes(self) -> int:
        """Size of its files."""
        ...

    def open(self, context: int, sequences: int = 1) -> Scorer:
        """Load it."""
        ...


@dataclass(frozen=True)
class Streamed:
    """A checkpoint, run by our own forward pass; `bytes` is the size of its files."""

    name: str
    checkpoint: Checkpoint
    bytes: int

    def open(self, context: int, sequences: int = 1) -> Scorer:
        """Load it."""
        return TorchDecoder(Decoder(self.checkpoint), context, sequences)


@dataclass(frozen=True)
class Model:
    """A model that can be run: a .gguf file, perhaps with factors in an adapter, or an .onnx file.

    `adapters` are a user's adapters on top, with their scales: GGUF files, or for ONNX
    adapter_model.safetensors of PEFT whose scale is in lora_B.
    """

    name: str
    base: Path
    adapter: Path | None = None
    adapters: tuple[tuple[Path, float], ...] = ()

    @staticmethod
    def from_path(path: Path) -> Model:
        """From an output folder, a GGUF or ONNX file, or a folder with an ONNX graph."""
        if path.is_dir() and not (path / MANIFEST).is_file() and any(path.rglob("*.onnx")):
            return Model(str(path), model_file(path))
        if path.is_dir():
            artifact = Artifact.open(path)
            return Model(str(path), artifact.base, artifact.factors)
        if not path.is_file():
            raise EdgepackError(
                f"{path}: no such file or folder",
                hint="give an output folder, an .onnx or a .gguf file",
            )
        return Model(str(path), path)

    @property
    def bytes(self) -> int:
        """Size of its files."""
        files = [path for path in (self.base, self.adapter) if path]
        files += [path for path, _ in self.adapters]
        if self.base.suffix == ".onnx":
            files += data_files(self.base)
        return sum(path.stat().st_size for path in files)

    def open(self, context: int, sequences: int = 1) -> Runtime:
        """Load it."""
        kind = OnnxRuntime if self.base.suffix == ".onnx" else LlamaCpp
        return kind(
            self.base,
            self.adapter,
            context=context,
            sequences=sequences,
            adapters=self.adapters,
        )
