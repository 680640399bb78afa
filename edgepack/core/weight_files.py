"""The files of a stage: tensors with a description; a decomposed weight is one file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgepack.core.disk import atomic
from edgepack.core.weights import FactoredWeight
from edgepack.errors import EdgepackError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description as one safetensors file, atomically."""
    with atomic(path) as temporary:
        kept = {name: tensor.cpu() for name, tensor in tensors.items()}
        save_file(kept, temporary, metadata={"edgepack": json.dumps(about)})


@dataclass(frozen=True)
class Streamed:
    """A tensor that is written run by run, in order, because it is too large to be there twice."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Iterable[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize


DTYPES = {torch.float32: "F32", torch.float64: "F64"}
"""Names of types in safetensors."""


def stream_tensors(path: Path, tensors: Mapping[str, Streamed], about: Mapping[str, Any]) -> None:
    """`save_tensors` of tensors that come in runs: the header needs their sizes only."""
    header: dict[str, Any] = {"__metadata__": {"edgepack": json.dumps(about)}}
    end = 0
    for name, run in tensors.items():
        start, end = end, end + run.nbytes
        place = {"shape": run.shape, "data_offsets": [start, end]}
        header[name] = {"dtype": DTYPES[run.dtype], **place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, run in tensors.items():
            before = file.tell()
            for part in run.parts:
                file.write(part.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert file.tell() - before == run.nbytes, f"{name}: not {run.nbytes} bytes"


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
