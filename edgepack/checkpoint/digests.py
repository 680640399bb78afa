"""The identity of a file that was read, and its sha256. Digests of large files are remembered while
the file is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from edgepack.core.disk import root
from edgepack.core.headers import NotReadError, headers_only
from edgepack.core.untrusted import MakeError, Untrusted, read_json, shorten, validate
from edgepack.errors import CheckpointError, EdgepackError

LARGE = 16 << 20
"""Smallest file whose digest is remembered (hashing 16 MB takes about 10 ms)."""
SETTLED = 2.0
"""Seconds after a file's last change until a further change is certain to alter its times. File
systems round times to up to 2 s, so that two writes within that time look alike."""


@dataclass(frozen=True)
class Identity:
    """The file that a path leads to, and its state. Writing to the file, replacing it, or resetting
    its modification time changes at least one of these."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def from_path(cls, path: Path) -> Identity:
        """The identity of the file that a path leads to, through links."""
        return cls._from_stat(path.stat())

    @classmethod
    def from_file(cls, file: BinaryIO) -> Identity:
        """The identity of an open file, even if its path leads elsewhere now."""
        return cls._from_stat(os.fstat(file.fileno()))

    @classmethod
    def _from_stat(cls, stat: os.stat_result) -> Identity:
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def is_same_elsewhere(self, path: Path) -> bool:
        """Whether a path on this machine leads to the very file that had this identity on another,
        through a shared file system: devices are numbered differently, all else is the file's."""
        try:
            return replace(Identity.from_path(path), device=self.device) == self
        except OSError:
            return False

    def check(self, path: Path, make_error: MakeError = CheckpointError) -> None:
        """Raise unless `path` still leads to this file in this state."""
        try:
            same = Identity.from_path(path) == self
        except OSError:
            same = False
        if not same:
            raise changed_error(path, make_error)


def changed_error(path: Path, make_error: MakeError = CheckpointError) -> EdgepackError:
    """The error for a file that has changed."""
    return make_error(
        f"{shorten(path.name, 80)}: changed while edgepack was reading it",
        hint="leave the file alone while edgepack runs, and start again",
    )


def sha256(path: Path, make_error: MakeError = CheckpointError) -> str:
    """Hex digest of a file's contents. Raises if the file changes while it is read; while a plan is
    made, a large file whose digest is not known is not read (`core.headers`)."""
    with path.open("rb") as file:
        identity = Identity.from_file(file)
        recalled = _recall(path, identity) if identity.size >= LARGE else None
        if recalled is None and identity.size >= LARGE and headers_only():
            raise NotReadError(path.name)
        digest = recalled or hashlib.file_digest(file, "sha256").hexdigest()
    identity.check(path, make_error)
    if recalled is None and identity.size >= LARGE:
        _remember(path, identity, digest)
    return digest


def combine(digests: dict[str, str]) -> str:
    """One digest of several named ones."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


class _Entry(Untrusted):
    """A remembered digest. `seal` tells a damaged entry from a whole one."""

    identity: list[int]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    seal: str


def _seal(path: Path, identity: Identity, digest: str) -> str:
    return hashlib.sha256(repr((str(path), astuple(identity), digest)).encode()).hexdigest()


def _place(path: Path) -> Path:
    """The file of a path's digest; one per path, so that processes do not overwrite others'."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return root() / "digests" / f"{name}.json"


def _recall(path: Path, identity: Identity) -> str | None:
    resolved = path.resolve()
    try:
        entry = validate(_Entry, read_json(_place(resolved)), "digest")
    except (EdgepackError, OSError):  # absent or damaged: hash again
        return None
    whole = entry.seal == _seal(resolved, identity, entry.sha256)
    return entry.sha256 if whole and entry.identity == list(astuple(identity)) else None


def _remember(path: Path, identity: Identity, digest: str) -> None:
    """Write the digest to the cache; errors are ignored, because they only cost time."""
    last = max(identity.mtime_ns, identity.ctime_ns) / 1e9
    if time.time() - last < SETTLED:
        return
    resolved = path.resolve()
    place = _place(resolved)
    partial = place.with_suffix(f".{secrets.token_hex(8)}.partial")
    entry = {
        "identity": astuple(identity),
        "sha256": digest,
        "seal": _seal(resolved, identity, digest),
    }
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(entry), encoding="utf-8")
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
