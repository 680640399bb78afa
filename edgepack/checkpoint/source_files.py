"""The files of one checkpoint; a file that changes between two reads is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edgepack.checkpoint import digests
from edgepack.checkpoint.digests import Identity, changed_error
from edgepack.core.headers import headers_only
from edgepack.core.untrusted import read_json, shorten
from edgepack.errors import CheckpointError

Known = tuple[Path, Identity, str]
"""A file, its identity and its sha256."""
HASHING = 4
"""Files that are hashed side by side."""
LFS = b"version https://git-lfs"


class SourceFiles:
    """Reads files and remembers their identity at the first read. Every later use checks that the
    path still leads to that file in that state."""

    def __init__(self) -> None:
        self._identities: dict[Path, Identity] = {}
        self._digests: dict[Path, str] = {}

    def check(self, paths: Iterable[Path]) -> None:
        """Raise if a file has changed; files not seen before are remembered."""
        for path in paths:
            known = self._identities.get(path)
            if known is None:
                with _readable(path):
                    self._identities[path] = Identity.from_path(path)
            else:
                known.check(path)

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """The open file; its identity is checked before and after the body."""
        with _readable(path), path.open("rb") as file:
            known = self._identities.setdefault(path, Identity.from_file(file))
            if Identity.from_file(file) != known:
                raise changed_error(path)
            yield file
            if Identity.from_file(file) != known:
                raise changed_error(path)
        known.check(path)

    def read(self, path: Path, start: int, nbytes: int) -> Tensor:
        """uint8 ``[nbytes]``, in memory that torch allocates, with always the same alignment."""
        out = torch.empty(nbytes, dtype=torch.uint8)
        view = out.numpy().data
        with self.open(path) as file:
            file.seek(start)
            done = 0
            while done < nbytes:
                count = file.readinto(view[done : done + (1 << 30)])  # type: ignore[attr-defined]
                if not count:
                    raise changed_error(path)  # its length was checked when it was opened
                done += count
        return out

    def read_json(self, path: Path) -> Any:
        """The content of a JSON file of the checkpoint."""
        with self.open(path) as file:
            refuse_pointer(path, file.read(len(LFS)))
            return read_json(path, CheckpointError)

    def sha256(self, path: Path) -> str:
        """Hex digest of a file, computed once."""
        self.check([path])
        if path not in self._digests:
            with _readable(path):
                self._digests[path] = digests.sha256(path)
            self.check([path])
        return self._digests[path]

    def known(self) -> tuple[Known, ...]:
        """The digests of large files, for another process or machine that reads the same."""
        found = self._digests.items()
        large = [(p, d) for p, d in found if self._identities[p].size >= digests.LARGE]
        return tuple((p.parent.resolve() / p.name, self._identities[p], d) for p, d in large)

    def trust(self, known: Iterable[Known]) -> None:
        """Take digests over from another process or machine, of those files that are the very
        same: hashing them again would take minutes on every machine."""
        for path, identity, digest in known:
            if identity.is_same_elsewhere(path):
                self._digests[path] = digest

    def all_sha256(self, paths: Sequence[Path]) -> list[str]:
        """Hex digests of files, several of which are read at a time."""
        if headers_only():
            return [self.sha256(path) for path in paths]
        with ThreadPoolExecutor(HASHING) as pool:
            return list(pool.map(self.sha256, paths))


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raise if a file's first bytes are those of a Git LFS pointer: the file is not fetched yet."""
    if beginning.startswith(LFS):
        raise CheckpointError(
            f"{shorten(path.name, 80)}: a Git LFS pointer, not the file itself",
            hint="fetch it: git lfs pull, or download the model with hf download",
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{shorten(path.name, 80)}: cannot be read ({error.strerror or type(error).__name__})",
            hint="the file may be missing, unreadable for you, or on a disk that fails",
        ) from error
