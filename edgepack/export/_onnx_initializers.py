"""The stored tensors of an ONNX graph of any origin, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from torch import Tensor

from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError
from edgepack.export import onnx_metadata
from edgepack.runtimes.onnx_check import AGAIN

TYPES: dict[int, tuple[str, torch.dtype]] = {
    TensorProto.FLOAT: ("F32", torch.float32),
    TensorProto.FLOAT16: ("F16", torch.float16),
    TensorProto.UINT8: ("U8", torch.uint8),
    TensorProto.INT8: ("I8", torch.int8),
    TensorProto.UINT4: ("U4", torch.uint8),
    TensorProto.INT4: ("I4", torch.int8),
}
"""ONNX's number of a type → its name here, and how its bytes are read."""
FOUR_BITS = ("U4", "I4")


@dataclass(frozen=True)
class Initializer:
    """Type, shape and position of a tensor's values."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int


class Initializers:
    """The tensors of a graph whose values are in `files` beside it."""

    def __init__(self, path: Path, files: Sequence[Path], source: SourceFiles, place: str) -> None:
        self.place, self._source, self.files = place, source, files
        source.check([path, *files])
        try:
            model = onnx.load(path, load_external_data=False)
        except (DecodeError, ValueError, RecursionError, OSError) as error:
            raise CheckpointError(
                f"{place}: {shorten(path.name, 80)} is not an ONNX graph, or damaged", hint=AGAIN
            ) from error
        found = {entry.key: entry.value for entry in model.metadata_props}
        if onnx_metadata.KEY not in found:
            raise CheckpointError(
                f"{place}: the graph does not say which formats its weights have",
                hint=f"it is another program's or an old one; {onnx_metadata.AGAIN}",
            )
        self.metadata = found[onnx_metadata.KEY]
        self.tensors = dict(self._positions(path.parent, model.graph.initializer))

    def _positions(
        self, folder: Path, tensors: Iterable[TensorProto]
    ) -> Iterable[tuple[str, Initializer]]:
        for tensor in tensors:
            if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type not in TYPES:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            try:
                start, nbytes = int(where.get("offset", "0")), int(where["length"])
                path = folder / where["location"]
            except (KeyError, ValueError) as error:
                raise self._damaged(tensor.name, "has no position in a file") from error
            known, shape = TYPES[tensor.data_type][0], tuple(tensor.dims)
            wanted = _nbytes(known, shape)
            if min(shape, default=1) < 0 or start < 0 or nbytes != wanted:
                raise self._damaged(tensor.name, f"has {nbytes} bytes, its shape {wanted}")
            if path not in self.files or start + nbytes > path.stat().st_size:
                raise self._damaged(tensor.name, "lies beyond the end of its file")
            yield tensor.name, Initializer(known, shape, path, start, nbytes)

    def _damaged(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.place}: {shorten(name, 80)} {problem}", hint=AGAIN)

    def has_label(self, label: str) -> bool:
        """Whether the graph has codes under this label."""
        return any(f"{label}.{kind}" in self.tensors for kind in ("codes", "codes_low"))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._find(name).shape

    def read(self, name: str, shape: tuple[int, ...], types: Sequence[str]) -> Tensor:
        """A tensor that should have this shape and one of these types. Types of 4 bits are bytes
        with two values each."""
        found = self._find(name)
        if found.shape != shape or found.dtype not in types:
            is_like, wanted = f"{found.dtype} {list(found.shape)}", f"{types[0]} {list(shape)}"
            raise self._damaged(name, f"is {is_like}, not {wanted}")
        data = self._source.read(found.path, found.start, found.nbytes)
        values = data.view(dict(TYPES.values())[found.dtype])
        return values if found.dtype in FOUR_BITS else values.reshape(shape)

    def _find(self, name: str) -> Initializer:
        if name not in self.tensors:
            raise self._damaged(name, "is missing")
        return self.tensors[name]


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    count, bits = math.prod(shape), {"F32": 32, "F16": 16, "U8": 8, "I8": 8}.get(dtype, 4)
    return -(-count * bits // 8)
