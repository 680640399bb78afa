"""The header of a GGUF file: metadata, and the position of each tensor.

gguf's own GGUFReader takes ten seconds for a vocabulary of Llama 3's size (a view per string), and
does not notice a truncated file until something else fails. This one reads the same layout, and
checks every size in it against the file before it allocates anything of that size.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUFValueType
from torch import Tensor

from edgepack.checkpoint import foreign_types
from edgepack.checkpoint.source_files import SourceFiles, refuse_pointer
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError
from edgepack.formats._ggml import GGML_QUANT_SIZES, GGMLQuantizationType

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

MAX_HEADER = 256 << 20
"""Most bytes before the tensor data; a vocabulary of 256k tokens with its merges takes 10 MB."""
MAX_ENTRIES = 100_000
"""Most keys, and most tensors; a model of 128 experts in 100 blocks has 40,000."""
MAX_ELEMENTS = 4 << 20
"""Most elements of an array."""
MAX_KEY = 1000
"""Most bytes of a key or a tensor's name; ggml holds 64 of a name."""
MAX_DIMENSIONS = 4
CHUNK = 16 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: `shape` with the outermost dimension first, `start` in the file."""

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

    def __init__(self, path: Path, files: SourceFiles | None = None) -> None:
        self.path, self._files = path, files or SourceFiles()
        self.metadata: Metadata = {}
        self.tensors: dict[str, Stored] = {}
        with self._files.open(path) as file:
            parser = _Parser(file)
            try:
                parser.read(self)
            except _DamagedError as error:
                raise CheckpointError(
                    f"{shorten(path.name, 80)}: {error}", hint=error.hint or DAMAGED
                ) from None
            except (struct.error, ValueError, ArithmeticError, MemoryError) as error:
                raise CheckpointError(
                    f"{shorten(path.name, 80)}: the header is corrupted", hint=DAMAGED
                ) from error

    def bytes_of(self, name: str) -> Tensor:
        """The stored bytes of a tensor, uint8."""
        stored = self.tensors[name]
        return self._files.read(self.path, stored.start, stored.nbytes)

    def bytes_of_rows(self, name: str, rows: range) -> Tensor:
        """The stored bytes of some rows of a matrix, uint8 ``[rows, bytes of a row]``."""
        stored = self.tensors[name]
        size = stored.nbytes // stored.shape[0]
        data = self._files.read(self.path, stored.start + rows.start * size, len(rows) * size)
        return data.view(len(rows), size)


class _DamagedError(Exception):
    """The header is damaged; the message says how."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class _Parser:
    """Reads a header from its beginning, and no more of the file than it needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)
        self._data, self._at = bytearray(), 0

    def read(self, header: GgufHeader) -> None:
        self._read_magic(header.path)
        tensors, keys = self._number("<Q"), self._number("<Q")
        if max(tensors, keys) > MAX_ENTRIES:
            raise _DamagedError(f"the header counts {tensors} tensors and {keys} keys")
        for _ in range(keys):
            key = self._string("a key", MAX_KEY)
            if key in header.metadata:
                raise _DamagedError(f"the key {shorten(key, 60)} is there twice")
            header.metadata[key] = self._value(key, self._kind(key))
        entries = [self._entry() for _ in range(tensors)]
        alignment = _alignment(header.metadata)
        begin = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in entries:
            if name in header.tensors:
                raise _DamagedError(f"the tensor {shorten(name, 60)} is there twice")
            if offset % alignment:
                raise _DamagedError(
                    f"{shorten(name, 60)} does not begin at a multiple of {alignment}"
                )
            header.tensors[name] = Stored(shape, kind, begin + offset)
        self._check_extents(header.tensors)

    def _read_magic(self, path: Path) -> None:
        beginning = self._file.read(64)
        self._file.seek(0)
        refuse_pointer(path, beginning)
        if not beginning:
            raise _DamagedError("the file is empty")
        if beginning[:4] != b"GGUF":
            raise _DamagedError(
                "not a GGUF file",
                "its first four bytes are not GGUF; is it a page or a pointer to the model?",
            )
        self._at = 4
        version = self._number("<I")
        if version and not version & 0xFFFF:
            raise _DamagedError(
                "a big-endian file, for machines with the other byte order",
                "fetch or convert the little-endian file; gguf-convert-endian does it",
            )
        if version not in VERSIONS:
            raise _DamagedError(
                f"GGUF version {version} is not supported",
                "supported: little-endian, version 2 or 3; convert the model again",
            )

    def _check_extents(self, tensors: dict[str, Stored]) -> None:
        """Check that tensors lie within the file and do not overlap."""
        end = 0
        for name, stored in sorted(tensors.items(), key=lambda item: item[1].start):
            if stored.start < end:
                raise _DamagedError(
                    f"{shorten(name, 60)} overlaps the tensor before it", _overlap_hint(tensors)
                )
            end = stored.start + stored.nbytes
            if end > self._size:
                raise _DamagedError(f"the file ends before the data of {shorten(name, 60)}")

    def _entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string("a tensor's name", MAX_KEY)
        called = shorten(name, 60)
        count = self._number("<I")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise _DamagedError(f"{called} has {count} dimensions")
        shape = tuple(self._number("<Q") for _ in range(count))[::-1]
        number, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            reason = f"{called} has type {foreign_types.describe(number)}"
            raise _DamagedError(reason, foreign_types.HINT) from None
        if min(shape) < 1:
            raise _DamagedError(f"{called} is empty: its shape is {list(shape)}")
        block = GGML_QUANT_SIZES[kind][0]
        if shape[-1] % block:
            raise _DamagedError(f"{called} has {shape[-1]} columns, {kind.name} goes by {block}")
        return name, shape, kind, offset

    def _kind(self, key: str) -> GGUFValueType:
        number = self._number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _DamagedError(f"{shorten(key, 60)} has the unknown type {number}") from None

    def _value(
        self, key: str, kind: GGUFValueType
    ) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
        if kind == GGUFValueType.STRING:
            return self._string(key), kind, None
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1)[0], kind, None
        element, count = self._kind(key), self._number("<Q")
        if element == GGUFValueType.ARRAY:
            raise _DamagedError(f"{shorten(key, 60)} is an array of arrays, which is not supported")
        if count > MAX_ELEMENTS:
            raise _DamagedError(f"{shorten(key, 60)} has {count} elements")
        if element == GGUFValueType.STRING:
            return [self._string(key) for _ in range(count)], kind, element
        return self._numbers(element, count), kind, element

    def _numbers(self, kind: GGUFValueType, count: int) -> list[Any]:
        layout = np.dtype(SCALARS[kind])
        start = self._take(count * layout.itemsize)
        listed: list[Any] = np.frombuffer(bytes(self._data[start : self._at]), layout).tolist()
        return listed

    def _number(self, layout: str) -> int:
        start = self._take(struct.calcsize(layout))
        (value,) = struct.unpack_from(layout, self._data, start)
        return int(value)

    def _string(self, what: str, limit: int = MAX_HEADER) -> str:
        length = self._number("<Q")
        if length > limit:
            raise _DamagedError(f"{shorten(what, 60)} has {length} bytes")
        start = self._take(length)
        try:
            return self._data[start : self._at].decode()
        except UnicodeDecodeError:
            raise _DamagedError(f"{shorten(what, 60)} is not valid UTF-8") from None

    def _take(self, count: int) -> int:
        """Read the next `count` bytes into `_data`; returns where they begin."""
        start, end = self._at, self._at + count
        if end > len(self._data):
            if end > self._size:
                raise _DamagedError("the file ends inside its header")
            if end > MAX_HEADER:
                raise _DamagedError(f"the header has more than {MAX_HEADER >> 20} MB")
            self._data += self._file.read(max(CHUNK, end - len(self._data)))
        if end > len(self._data):
            raise _DamagedError("the file ends inside its header")
        self._at = end
        return start


def _overlap_hint(tensors: dict[str, Stored]) -> str:
    """PrismML's older files call blocks of 128 columns Q2_0, which are smaller than stock's."""
    if not any(stored.kind.name == "Q2_0" for stored in tensors.values()):
        return ""
    return "its Q2_0 may be PrismML's old one, of 128 columns: take the file whose name has _g64"


def _alignment(metadata: Metadata) -> int:
    value = metadata.get("general.alignment", (GGUF_DEFAULT_ALIGNMENT,))[0]
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20
    if not usable or value & (value - 1):
        raise _DamagedError(f"general.alignment is {quote(value)}, which is no power of two")
    return int(value)
