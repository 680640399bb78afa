"""Files and folders on disk: written whole or not at all, one process at a time, and cleaned up."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from edgepack.errors import EdgepackError

TEMPORARY = ".tmp"
"""Ending of files that are being written."""


def root() -> Path:
    """Where stages and notes are kept: ``$EDGEPACK_CACHE``, else the user's cache folder."""
    given = os.environ.get("EDGEPACK_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgepack"))


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; it is renamed to `path` when the body succeeds. If `durable`,
    the data reaches the disk before the name, so that the file is whole after a power failure."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot sync folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock the name `path` while the body runs; yields False at once if another process holds it.
    The lock ends with the process, even if that is killed; its file is removed with the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            path.unlink()  # filelock checks that the file it locked still has its name
        lock.release()


def lock_of(name: str) -> Path:
    """The lock file of something in the cache."""
    return root() / "locks" / f"{name}.lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for large files that are needed only while this process runs. Folders of processes
    that were killed are removed first."""
    clean()
    name = secrets.token_hex(8)
    folder = root() / "scratch" / name
    with locked(lock_of(f"scratch-{name}")) as mine:
        assert mine, "128 random bits came twice"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clean() -> None:
    """Check that the cache can be written; remove the scratch folders and locks of processes that
    were killed."""
    try:
        root().mkdir(parents=True, exist_ok=True)
        if not os.access(root(), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise EdgepackError(
            f"{root()}: the cache cannot be written ({error.strerror})",
            hint="EDGEPACK_CACHE names another folder",
        ) from None
    for path in sorted((root() / "locks").glob("*.lock")):
        with ExitStack() as stack:
            if stack.enter_context(locked(path)) and path.stem.startswith("scratch-"):
                folder = root() / "scratch" / path.stem.removeprefix("scratch-")
                shutil.rmtree(folder, ignore_errors=True)
