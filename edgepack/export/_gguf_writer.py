"""Writing of a GGUF file, with one tensor in memory at a time."""

from __future__ import annotations

import errno
import math
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import ExportError
from edgepack.export.values import check_finite
from edgepack.formats.base import GgmlFormat

_F32 = 0  # GGML_TYPE_F32
LONG = 1000
"""Entries of a list whose bytes are counted without packing them."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its header, and the function that reads its values when it is written.

    `format` None is float32; `rows` is the order of rows in the file if that differs from the
    source's.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], QuantizedTensor | Tensor]
    format: GgmlFormat | None = None
    rows: Tensor | None = None

    @property
    def ggml_type(self) -> int:
        return _F32 if self.format is None else self.format.ggml_type

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape) if self.format is None else self.format.nbytes(self.shape)

    def data(self) -> NDArray[Any]:
        """The tensor's bytes, with rows in the file's order."""
        value = self.read()
        if self.format is None:
            if not isinstance(value, Tensor):
                raise ValueError(f"{self.name}: {value.format}, announced float32")
            value = value.float()
            check_finite(self.name, value)
        elif isinstance(value, QuantizedTensor):
            if value.format != self.format.name:
                raise ValueError(f"{self.name}: {value.format}, announced {self.format.name}")
            check_finite(self.name, value)
            value = self.format.pack_by_rows(value)
        ordered = value if self.rows is None else value[self.rows]
        found: NDArray[Any] = ordered.contiguous().numpy()
        if found.nbytes != self.nbytes:
            raise ValueError(f"{self.name}: {found.nbytes} bytes, announced {self.nbytes}")
        return found


def write(
    path: Path,
    architecture: Architecture,
    metadata: Mapping[str, tuple[Any, Any, Any]],
    entries: list[Entry],
) -> int:
    """Write a file under a temporary name; it is renamed when it is complete."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = _announced(unfinished, architecture, metadata, entries)
    try:
        _write_header(writer)
        for entry in entries:
            writer.write_tensor_data(entry.data())
        writer.close()
        return unfinished.replace(path).stat().st_size
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, None):  # None: numpy wrote a part only
            raise
        needed = sum(entry.nbytes for entry in entries)
        raise ExportError(
            f"no space left for {path}", hint=f"free {needed / 1e6:.0f} MB and run it again"
        ) from error
    finally:
        _abandon(writer)
        unfinished.unlink(missing_ok=True)


def _announced(
    path: Path,
    architecture: Architecture,
    metadata: Mapping[str, tuple[Any, Any, Any]],
    entries: list[Entry],
) -> GGUFWriter:
    """A writer that has everything but the values."""
    writer = GGUFWriter(path, architecture.gguf)
    for key, (value, kind, sub_type) in metadata.items():
        if key != "general.architecture":  # the writer adds this key itself
            writer.add_key_value(key, value, kind, sub_type)
    for entry in entries:
        # any dtype but uint8 makes the writer take the shape as elements
        as_elements = np.dtype(np.float32)
        writer.add_tensor_info(entry.name, entry.shape, as_elements, entry.nbytes, entry.ggml_type)
    return writer


def _write_header(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def size_of(
    architecture: Architecture,
    metadata: Mapping[str, tuple[Any, Any, Any]],
    entries: list[Entry],
) -> int:
    """Bytes of the file that `write` would write: its header, built here, and padded tensors."""
    long = {key: entry for key, entry in metadata.items() if _is_long(entry[0])}
    short = {key: entry for key, entry in metadata.items() if key not in long}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header"
        writer = _announced(path, architecture, short, entries)
        _write_header(writer)
        pad = writer.data_alignment
        writer.close()
        header = path.stat().st_size
    header += sum(_list_bytes(key, value, kind) for key, (value, _, kind) in long.items())
    return sum(-(-size // pad) * pad for size in (header, *(e.nbytes for e in entries)))


def _is_long(value: Any) -> bool:
    """Whether a value is a list, such as a vocabulary, that the writer would pack for seconds."""
    return isinstance(value, list) and len(value) > LONG


def _list_bytes(key: str, values: list[Any], kind: GGUFValueType | None) -> int:
    """Bytes of an entry of the header: key, type, element type, count, elements."""
    beginning = 8 + len(key.encode()) + 4 + 4 + 8
    kind = kind or GGUFValueType.get_type(values[0])
    if kind == GGUFValueType.STRING:
        texts = (one.encode() if isinstance(one, str) else one for one in values)
        return beginning + sum(8 + len(text) for text in texts)
    return beginning + struct.calcsize(GGUFWriter._simple_value_packing[kind]) * len(values)


def _abandon(writer: GGUFWriter) -> None:
    """Close the file even if its buffer cannot be written any more."""
    for file in writer.fout or ():
        try:
            file.close()
        except OSError:
            continue  # a failed close still releases the descriptor
