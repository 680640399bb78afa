"""Files that can be run and texts that they are run on: ours, the original's, anybody's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from edgepack.checkpoint import Checkpoint
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.errors import EdgepackError, missing_extra
from edgepack.core.progress import Progress, Steps
from edgepack.export.gguf import write_plain
from edgepack.recipe.sections import Onnx
from edgepack.runtimes.base import Runtime
from edgepack.runtimes.llama_cpp import LlamaCpp
from edgepack.runtimes.onnx_runtime import OnnxRuntime, data_files, model_file


class Library(NamedTuple):
    """What runs the files of a target: a module, the package that has it, our extra for that."""

    module: str
    package: str
    extra: str

    def check(self) -> None:
        """Refuse to go on without it."""
        if find_spec(self.module) is None:
            raise missing_extra(self.package, self.extra)


RUNTIMES = {
    "gguf": Library("llama_cpp", "llama-cpp-python", "llama"),
    "onnx": Library("onnxruntime", "onnxruntime", "onnx"),
    "checkpoint": Library("torch", "torch", ""),
}


@dataclass(frozen=True)
class Model:
    """Something that can be run: a .gguf file, perhaps with an adapter, or an .onnx file."""

    name: str
    base: Path
    adapter: Path | None = None

    @staticmethod
    def at(path: Path) -> Model:
        """An output folder, a GGUF or ONNX file, or a folder with a graph of another's making."""
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
        if self.base.suffix == ".onnx":
            files += data_files(self.base)
        return sum(path.stat().st_size for path in files)

    def open(self, context: int, sequences: int = 1) -> Runtime:
        """Load it."""
        if self.base.suffix == ".onnx":
            return OnnxRuntime(self.base, self.adapter, context=context, sequences=sequences)
        return LlamaCpp(self.base, self.adapter, context=context, sequences=sequences)


def written(target: str, folder: Path) -> Model:
    """Our own model in a folder that has no manifest yet."""
    if target == "onnx":
        return Model("edgepack", model_file(folder))
    factors = folder / "factors.gguf"
    return Model("edgepack", folder / "base.gguf", factors if factors.exists() else None)


def write_original(
    target: str, original: Checkpoint, folder: Path, stage: str = "measure"
) -> Steps[Path]:
    """A model with its matrices as f16, for the runtime of a target; the file to open."""
    yield Progress(stage, 0, 1, "writing the original as f16")
    if target == "onnx":
        from edgepack.export import onnx

        options = onnx.graph_options(original, Onnx())
        return (yield from onnx.write_plain(folder, original, None, options, stage))
    write_plain(folder / "original.gguf", original)
    return folder / "original.gguf"
