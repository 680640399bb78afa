"""Sharded safetensors written in place: headers are known beforehand, tensors go straight to their
position in the file, from any thread and in any order.

A shard is written as ``NAME.part`` and renamed when all of it is there. Beside it lies a journal
with a line for every tensor that was written, and its checksum. What a killed run had finished is
found by them and not made again.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edgepack.checkpoint.shards import INDEX, READABLE, SINGLE
from edgepack.core.disk import atomic, sync
from edgepack.core.tables import format_size
from edgepack.errors import ExportError

PART, JOURNAL = ".part", ".journal"
SHARD = 5_000_000_000
"""Most bytes of a shard, as in transformers and mergekit."""
ALIGN = 8
"""Headers of safetensors are padded to a multiple of this."""
ROOM = 1 << 24
"""Bytes that stay free on a disk: for the tokenizer and other small files."""
PIECE = 1 << 24
"""Bytes that are read at once when a checksum is verified."""


class Stored(Protocol):
    """What is known of a tensor before it is written; `dtype` as safetensors has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Slot:
    """The position of a tensor in a shard's file."""

    start: int
    nbytes: int


@dataclass
class Shard:
    """A file of the result: its header, and where each tensor goes."""

    path: Path
    header: bytes
    slots: Mapping[str, Slot]
    missing: set[str] = field(default_factory=set)

    @property
    def part(self) -> Path:
        """The file while it is being written."""
        return self.path.with_name(self.path.name + PART)

    @property
    def journal(self) -> Path:
        """The names of the tensors that were written, and their checksums."""
        return self.path.with_name(self.path.name + JOURNAL)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(slot.nbytes for slot in self.slots.values())


class Writer:
    """The weights of a model as they are written into `folder`."""

    def __init__(self, folder: Path, tensors: Sequence[Stored], shard_size: int = SHARD) -> None:
        self._folder = folder
        self._shards = _plan(folder, tensors, shard_size)
        self._of = {name: shard for shard in self._shards for name in shard.slots}
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        for shard in self._shards:
            shard.missing = set(shard.slots) - self._written(shard)

    @property
    def missing(self) -> set[str]:
        """Names of the tensors that are still to be written."""
        return {name for shard in self._shards for name in shard.missing}

    def check_space(self) -> None:
        """Refuse a disk that cannot hold what is missing."""
        needed = ROOM
        for shard in self._shards:
            if not shard.path.exists():
                there = shard.part.stat().st_blocks * 512 if shard.part.exists() else 0
                needed += max(0, shard.size - there)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise ExportError(
                f"merge: the result needs {format_size(needed)} more, and {self._folder} has "
                f"{format_size(free)} free",
                hint="free some space, or let EDGEPACK_CACHE name a folder on another disk",
            )

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of the planned shape and type; the last one of a shard gives it its name.
        Threads may write different tensors at once."""
        shard = self._of[name]
        slot = shard.slots[name]
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        assert len(data) == slot.nbytes, f"{name}: {len(data)} bytes, not {slot.nbytes}"
        file = self._open(shard)
        _write_all(file, data, slot.start)
        line = json.dumps([name, zlib.crc32(data)]) + "\n"
        with self._lock:
            with shard.journal.open("a", encoding="utf-8") as journal:
                journal.write(line)
            shard.missing.discard(name)
            if not shard.missing:
                self._finish(shard)

    def write_index(self) -> None:
        """Finish shards that were whole when the run before was killed, and write the index of
        several."""
        for shard in self._shards:
            with self._lock:
                self._finish(shard)
        if len(self._shards) > 1:
            total = sum(slot.nbytes for shard in self._shards for slot in shard.slots.values())
            weight_map = {name: shard.path.name for name, shard in self._of.items()}
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with atomic(self._folder / INDEX) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; what is not whole stays for the next run."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _open(self, shard: Shard) -> int:
        """The file of a shard, made with its header and its whole length."""
        with self._lock:
            found = self._files.get(shard.path)
            if found is None:
                found = os.open(shard.part, os.O_RDWR | os.O_CREAT, 0o644)
                self._files[shard.path] = found
                os.ftruncate(found, shard.size)
                _write_all(found, memoryview(shard.header), 0)
            return found

    def _finish(self, shard: Shard) -> None:
        """Give a shard its name, once all of it is on disk."""
        if shard.missing:
            return
        file = self._files.pop(shard.path, None)
        if file is not None:
            os.close(file)
        if not shard.path.exists():
            sync(shard.part)
            shard.part.replace(shard.path)
        shard.journal.unlink(missing_ok=True)

    def _written(self, shard: Shard) -> set[str]:
        """The tensors of a shard that an earlier run has written."""
        if shard.path.exists():
            return set(shard.slots)
        if not (shard.part.exists() and shard.journal.exists()):
            return set()
        with shard.part.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                return set()
            return {
                name
                for name, checksum in _entries(shard.journal)
                if name in shard.slots and _checksum(file.fileno(), shard.slots[name]) == checksum
            }


def _plan(folder: Path, tensors: Sequence[Stored], shard_size: int) -> list[Shard]:
    """The shards, each of at least one tensor and at most `shard_size` bytes of them."""
    groups: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > shard_size:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    count = len(groups)
    return [
        _shard(folder / (SINGLE if count == 1 else _name(number, count)), group)
        for number, group in enumerate(groups, 1)
    ]


def _name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _shard(path: Path, tensors: Sequence[Stored]) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, tuple[int, int]] = {}
    start = 0
    for tensor in tensors:
        offsets[tensor.name] = (start, tensor.nbytes)
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGN)
    header = len(text).to_bytes(8, "little") + text
    slots = {name: Slot(len(header) + at, nbytes) for name, (at, nbytes) in offsets.items()}
    return Shard(path, header, slots)


def _write_all(file: int, data: memoryview, start: int) -> None:
    """All bytes at a position: one call writes 2 GiB at most."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + (1 << 30)], start + done)


def _entries(journal: Path) -> Iterator[tuple[str, int]]:
    """Tensors in a journal and their checksums; a killed run may have left half a line."""
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            name, checksum = json.loads(line)
        except ValueError:
            continue
        if isinstance(name, str) and isinstance(checksum, int):
            yield name, checksum


def _checksum(file: int, slot: Slot) -> int:
    checksum, done = 0, 0
    while done < slot.nbytes:
        data = os.pread(file, min(PIECE, slot.nbytes - done), slot.start + done)
        if not data:
            return -1
        checksum = zlib.crc32(data, checksum)
        done += len(data)
    return checksum


def torch_dtype(name: str) -> torch.dtype:
    """torch's type of a name in safetensors."""
    return READABLE[name]
