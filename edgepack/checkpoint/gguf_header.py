"""The header of a GGUF file: metadata and where each tensor lies.

gguf's own GGUFReader takes ten seconds for a vocabulary of Llama 3's size, a view per string, and
does not notice a file that ends early until something else fails. This one reads the same layout.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from edgepack.errors import CheckpointError

Metadata = dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]
"""Key → (value, type, element type of an array)."""

SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
VERSIONS = (2, 3)
DAMAGED = "the download may be incomplete: compare its size with the source and fetch it again"


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: `shape` outermost dimension first, `start` as the file counts."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return int(math.prod(self.shape) // block * size)


class GgufHeader:
    """Everything before the tensor data, checked against the length of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap refuses empty files with a ValueError
            raise self._damaged("cannot be read") from error
        self._at = 0
        try:
            self._read()
        except (struct.error, ValueError, KeyError, ArithmeticError, MemoryError) as error:
            raise self._damaged("ends inside its header, or the header is corrupted") from error

    def bytes_of(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of a tensor, a view of the mapped file."""
        stored = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, stored.nbytes, stored.start)

    def _read(self) -> None:
        if self._data[:4] != b"GGUF":
            raise CheckpointError(
                f"{self.path.name}: not a GGUF file",
                hint="its first four bytes are not GGUF; is it a page or a pointer to the model?",
            )
        self._at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path.name}: GGUF version {version} (or byte order) is not supported",
                hint="supported: little-endian, version 2 or 3; convert the model again",
            )
        tensors, keys = self._number("<Q"), self._number("<Q")
        self.metadata: Metadata = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(GGUFValueType(self._number("<I")))
        entries = [self._entry() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", (GGUF_DEFAULT_ALIGNMENT,))[0]
        begin = -(-self._at // alignment) * alignment
        self.tensors = {
            name: Stored(shape, kind, begin + offset) for name, shape, kind, offset in entries
        }
        for name, stored in self.tensors.items():
            if stored.start + stored.nbytes > len(self._data):
                raise self._damaged(f"ends before the data of {name}")

    def _entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        shape = tuple(self._number("<Q") for _ in range(self._number("<I")))
        return name, shape[::-1], GGMLQuantizationType(self._number("<I")), self._number("<Q")

    def _value(self, kind: GGUFValueType) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
        if kind == GGUFValueType.STRING:
            return self._string(), kind, None
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1)[0], kind, None
        element, count = GGUFValueType(self._number("<I")), self._number("<Q")
        if element == GGUFValueType.STRING:
            return [self._string() for _ in range(count)], kind, element
        return self._numbers(element, count), kind, element

    def _numbers(self, kind: GGUFValueType, count: int) -> list[Any]:
        values = np.frombuffer(self._data, SCALARS[kind], count, self._at)
        self._at += values.nbytes
        listed: list[Any] = values.tolist()
        return listed

    def _number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return int(value)

    def _string(self) -> str:
        length = self._number("<Q")
        end = self._at + length
        if end > len(self._data):
            raise ValueError("a string beyond the end")
        text = self._data[self._at : end].decode()
        self._at = end
        return text

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: the file {what}", hint=DAMAGED)
