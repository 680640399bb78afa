"""Models that can be run: exported files, files from elsewhere, or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU
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

    def on(self, device: torch.device) -> Runnable:
        """The same, run on a device where that is ours to say."""
        ...


@dataclass(frozen=True)
class Streamed:
    """A checkpoint, run by our own forward pass; `bytes` is the size of its files."""

    name: str
    checkpoint: Checkpoint
    bytes: int
    device: torch.device = CPU

    def open(self, context: int, sequences: int = 1) -> Scorer:
        """Load it."""
        return TorchDecoder(Decoder(self.checkpoint, device=self.device), context, sequences)

    def on(self, device: torch.device) -> Streamed:
        """The same on a device."""
        return replace(self, device=device)


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
    def files(self) -> list[Path]:
        """What it consists of."""
        files = [path for path in (self.base, self.adapter) if path]
        files += [path for path, _ in self.adapters]
        return files + (data_files(self.base) if self.base.suffix == ".onnx" else [])

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def package(self) -> str:
        """The package that runs it."""
        return "onnxruntime" if self.base.suffix == ".onnx" else "llama-cpp-python"

    def on(self, device: torch.device) -> Model:
        """Itself: its runtime computes where it was made for."""
        return self

    def open(self, context: int, sequences: int = 1, threads: int | None = None) -> Runtime:
        """Load it, to run on some threads (None: one on every core)."""
        kind = OnnxRuntime if self.base.suffix == ".onnx" else LlamaCpp
        return kind(
            self.base,
            self.adapter,
            context=context,
            sequences=sequences,
            adapters=self.adapters,
            threads=threads,
        )
