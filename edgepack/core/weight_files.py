"""The files of a stage: tensors with a description; a decomposed weight is one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgepack.core.disk import atomic
from edgepack.core.weights import FactoredWeight
from edgepack.errors import EdgepackError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description as one safetensors file, atomically."""
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"edgepack": json.dumps(about)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_tensors`."""
    with _opened(path) as file:
        about: dict[str, Any] = json.loads(file.metadata()["edgepack"])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of the cache, open; what is wrong with it is one error."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise damaged_error(path, error) from error


def damaged_error(path: Path, error: Exception) -> EdgepackError:
    """The error for a file of the cache that cannot be read."""
    return EdgepackError(
        f"{path.name}: a file of the cache is damaged ({str(error).splitlines()[0]})",
        hint=f"delete {path.parent} and run again: that stage is then made anew",
    )


def read_about(path: Path) -> dict[str, Any]:
    """The description of a file, without reading its tensors."""
    with _opened(path) as file:
        found: dict[str, Any] = json.loads(file.metadata()["edgepack"])
        return found


IMATRIX = "imatrix"
"""The tensor in a weight's file that belongs to neither Q, L nor R."""


def weight_path(folder: Path, name: str) -> Path:
    """The file of a weight in a stage's folder."""
    return folder / f"{name}.safetensors"


def load_weight(folder: Path, name: str) -> tuple[FactoredWeight, dict[str, Any]]:
    """A decomposed weight and its description (errors, damping, method)."""
    tensors, about = load_tensors(weight_path(folder, name))
    return FactoredWeight.from_tensors(tensors, about["formats"]), about


def load_about(folder: Path, name: str) -> dict[str, Any]:
    """The description of a decomposed weight, without reading its tensors."""
    return read_about(weight_path(folder, name))


def load_imatrix(folder: Path, name: str) -> Tensor:
    """Mean squared inputs ``[in]`` of a decomposed weight, for llama.cpp's quantizer."""
    with _opened(weight_path(folder, name)) as file:
        found: Tensor = file.get_tensor(IMATRIX)
        return found
