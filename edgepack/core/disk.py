"""Files and folders on disk: written whole or not at all, one process at a time, and cleaned up."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from edgepack.core.quota import quota_left
from edgepack.errors import EdgepackError

TEMPORARY = ".tmp"
"""Ending of files that are being written."""
REMOVED = ".removed"
"""Ending of results that are being removed: they were renamed first, so that none is ever there in
part."""
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "a file becomes larger than the disk or `ulimit -f` allows",
}
"""Errors of writing where there is no room, as they are said."""
FULL_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    " requested and ": errno.ENOSPC,
}
"""The same in the words of libraries that give no error number; the last are numpy's."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems answer that know no locks."""
POLL = 0.01
"""Seconds between attempts to take a lock."""
GRACE = 0.1
"""Seconds after which a lock is really somebody's: `clean` takes every lock for a moment, to see
whether it is."""


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
        with writing_to(path):
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def no_room(error: BaseException) -> int | None:
    """The number of an error of writing where there is no room; None for every other error."""
    if isinstance(error, OSError) and error.errno in FULL:
        return error.errno
    text = str(error)
    return next((number for words, number in FULL_TEXTS.items() if words in text), None)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Name the place in errors of a full disk, which have none when they come from a file that is
    open: `filename`, as those of opening have it."""
    try:
        yield
    except Exception as error:
        number = no_room(error)
        if number and getattr(error, "filename", None) is None:
            if isinstance(error, OSError):  # numpy's have a text only, which a name would hide
                error.errno, error.strerror = number, os.strerror(number)
            with suppress(AttributeError, TypeError):
                error.filename = str(path)  # type: ignore[attr-defined]
        raise


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


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `since` is in seconds since 1970."""

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        form = "%H:%M" if time.time() - self.since < 12 * 3600 else "%Y-%m-%d %H:%M"
        return f"process {self.pid}{where}, since {time.strftime(form, time.localtime(self.since))}"


@contextmanager
def locked(path: Path, *, wait: float = GRACE) -> Iterator[bool]:
    """Lock the name `path` while the body runs; yields False if another process holds it for `wait`
    seconds (below 0: for as long as it does). The lock ends with the process, even if that is
    killed; its file is removed with the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a soft one would outlive its process
    try:
        lock.acquire(timeout=wait, poll_interval=POLL)
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise EdgepackError(
            f"{path.parent}: this file system knows no locks ({error.strerror})",
            hint="EDGEPACK_CACHE names a folder on another disk; NFS must be mounted with locks",
        ) from None
    try:
        yield True
    finally:
        with suppress(OSError):
            if _note(path).exists():  # that of this process, or of a dead one; before the lock,
                _note(path).unlink()  # by whose name `clean` finds what is left
            path.unlink()  # filelock checks that the file it locked still has its name
        lock.release()


@contextmanager
def signed(path: Path, *, wait: float = GRACE) -> Iterator[bool]:
    """`locked`, with a note beside it that tells others who holds the lock."""
    with locked(path, wait=wait) as mine:
        if mine:
            with suppress(OSError):  # on a full disk nobody is told
                here = Holder(os.getpid(), socket.gethostname(), time.time())
                _note(path).write_text(json.dumps(asdict(here)), encoding="utf-8")
        yield mine


def holder(path: Path) -> Holder | None:
    """Who holds a lock that is `signed`; None if that is not known."""
    try:
        return Holder(**json.loads(_note(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def lock_of(name: str, cache: Path | None = None) -> Path:
    """The lock file of something in the cache."""
    return (cache or root()) / "locks" / f"{name}.lock"


def free_space(path: Path | None = None) -> int:
    """Bytes that this user may still write at `path`, by default into the cache."""
    place = root() if path is None else path.absolute()
    while not place.exists():
        place = place.parent
    free, left = shutil.disk_usage(place).free, quota_left(place)
    return free if left is None else min(free, left)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for large files that are needed only while this process runs. Folders of processes
    that were killed are removed first."""
    clean()
    name = secrets.token_hex(8)
    folder = root() / "scratch" / name
    with locked(lock_of(f"scratch-{name}"), wait=-1):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clean() -> None:
    """Check that the cache can be written; remove scratch folders, locks and results that were
    being removed of processes that were killed."""
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
            mine = stack.enter_context(locked(path, wait=0))
            if mine and path.stem.startswith("scratch-"):
                folder = root() / "scratch" / path.stem.removeprefix("scratch-")
                shutil.rmtree(folder, ignore_errors=True)
    for folder in root().glob(f"*/*{REMOVED}"):
        shutil.rmtree(folder, ignore_errors=True)
