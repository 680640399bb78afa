"""The files of one GGUF model: a file, or the parts that llama-gguf-split makes of it."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from edgepack.checkpoint.gguf_header import GgufHeader, Stored
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
"""Name of a part, counted from 1, and of how many."""
COUNT, NUMBER = "split.count", "split.no"
"""Keys: how many parts there are, and which this is, counted from 0."""


class GgufParts:
    """`path` and the parts beside it, as one header; any part may be named. The first has the
    metadata, and all have tensors."""

    def __init__(self, path: Path, files: SourceFiles) -> None:
        named = GgufHeader(path, files)
        self.paths = _paths(path, _number(named, COUNT, 1))
        headers = [named if part == path else GgufHeader(part, files) for part in self.paths]
        self.metadata = headers[0].metadata
        self.tensors: dict[str, Stored] = {}
        self._header_of: dict[str, GgufHeader] = {}
        for index, header in enumerate(headers):
            self._check(header, index)
            for name, stored in header.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        f"{shorten(header.path.name, 80)}: the tensor {shorten(name, 60)} is in "
                        "another part as well",
                        hint="the parts may be of two models: fetch them again",
                    )
                self.tensors[name], self._header_of[name] = stored, header

    def _check(self, header: GgufHeader, index: int) -> None:
        count = len(self.paths)
        found = _number(header, COUNT, 1), _number(header, NUMBER, 0)
        if count > 1 and found != (count, index):
            raise CheckpointError(
                f"{shorten(header.path.name, 80)}: says that it is part {found[1] + 1} of "
                f"{found[0]}",
                hint="files of two models may be in one folder, or renamed: fetch them again",
            )

    def bytes_of(self, name: str) -> Tensor:
        """The stored bytes of a tensor, uint8."""
        return self._header_of[name].bytes_of(name)

    def bytes_of_rows(self, name: str, rows: range) -> Tensor:
        """The stored bytes of some rows of a matrix, uint8 ``[rows, bytes of a row]``."""
        return self._header_of[name].bytes_of_rows(name, rows)


def _number(header: GgufHeader, key: str, default: int) -> int:
    value = header.metadata.get(key, (default,))[0]
    return value if type(value) is int else default


def _paths(path: Path, count: int) -> list[Path]:
    """All parts, the first first."""
    if count <= 1:
        return [path]
    name = NAME.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise CheckpointError(
            f"{shorten(path.name, 80)}: one part of a model of {count}, by another name",
            hint="the parts are called NAME-00001-of-0000N.gguf and so on; or join them with "
            "llama.cpp's llama-gguf-split --merge",
        )
    paths = [path.with_name(f"{name[1]}-{i:05d}-of-{name[3]}{name[4]}") for i in _numbers(count)]
    missing = [part for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{shorten(missing[0].name, 80)}: is missing beside {shorten(path.name, 80)}",
            hint=f"fetch all {count} parts of the model into one folder",
        )
    return paths


def _numbers(count: int) -> range:
    return range(1, count + 1)
