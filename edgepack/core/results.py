"""Results of stages on disk: ``STAGE/KEY``, or ``STAGE/KEY.partial`` while unfinished.

Whoever reads a result marks it as in use by a lock of its own, which ends with the process. Marks
are set, and results removed, only while the gate is held, a lock that is held for moments: so what
is read is not removed. A result is renamed before it is removed, so that it is there whole or not
at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from edgepack.core.artifact import FileName
from edgepack.core.disk import (
    REMOVED,
    Holder,
    atomic,
    holder,
    lock_of,
    locked,
    root,
    sha256,
    signed,
    sync,
)
from edgepack.core.untrusted import Untrusted, read_json, validate
from edgepack.errors import EdgepackError

PARTIAL = ".partial"
"""Ending of a folder that is being made."""
LIST = "stage.json"
"""What a finished stage says of itself: what it was made of and with, and its files' sha256. Its
time of change is the last time that the result was used."""
HASHING = 4
"""Files that are hashed side by side."""
HANDED = "handed-over"
"""Folder of the notes of `handing_over`."""
UNKNOWN = Holder(0, "", 0.0)
"""A holder of whom nothing is known."""


class Listed(Untrusted):
    """The part of `LIST` that is read again: file → sha256, and the name of the model."""

    files: dict[FileName, str]
    model: str | None = None


@dataclass(frozen=True)
class Result:
    """The place of a result in the folder `cache`, whether something is there or not."""

    cache: Path
    stage: str
    key: str

    @property
    def folder(self) -> Path:
        """Where it stands when it is finished."""
        return self.cache / self.stage / self.key

    @property
    def partial(self) -> Path:
        """Where it is being written."""
        return self.folder.with_name(self.key + PARTIAL)

    @property
    def lock(self) -> Path:
        """The lock of whoever makes it."""
        return lock_of(f"{self.stage}-{self.key}", self.cache)

    @property
    def is_done(self) -> bool:
        """Whether it is finished; `damaged` looks at its files."""
        return self.folder.is_dir()

    # ------------------------------------------------------------------------ content

    def read_list(self) -> Listed:
        """Its list. Raises `EdgepackError` if that is lost."""
        path = self.folder / LIST
        try:
            return validate(Listed, read_json(path), path.name)
        except (OSError, EdgepackError) as error:
            raise self._damaged(f"is damaged ({error})") from None

    def files(self) -> Mapping[str, str]:
        """Name → sha256 of every file of the finished result."""
        return self.read_list().files

    def damaged(self) -> list[str]:
        """Files that are not those that were written; all are read."""
        listed = self.files()
        found = digests([self.folder / name for name in listed])
        return [name for name, own in zip(listed, found, strict=True) if own != listed[name]]

    def foreign(self) -> list[str]:
        """Files in the finished result that edgepack did not write."""
        known = {*self.files(), LIST}
        found = [path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        return sorted({path.relative_to(self.folder).as_posix() for path in found} - known)

    def touch(self) -> None:
        """Note that it is used now."""
        with suppress(OSError):  # a cache that may only be read
            os.utime(self.folder / LIST)

    # ------------------------------------------------------------------------ who is at it

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Nobody removes it while the body works, even if it is made only now."""
        mark = lock_of(f"{self._marks}{secrets.token_hex(6)}", self.cache)
        with ExitStack() as stack:
            with _gate(self.cache):
                stack.enter_context(signed(mark, wait=-1))
            yield

    def maker(self) -> Holder | None:
        """Who makes it now."""
        return _held(self.lock)

    def users(self) -> list[Holder]:
        """Who reads it now."""
        marks = sorted(self.lock.parent.glob(f"{self._marks}*.lock"))
        return [found for found in map(_held, marks) if found is not None]

    @property
    def _marks(self) -> str:
        return f"use-{self.stage}-{self.key}-"

    # ------------------------------------------------------------------------ removing

    def remove(self) -> bool:
        """Remove the finished result, unless somebody reads it; whether it was removed. Raises
        `EdgepackError` if there are files in it that edgepack did not write."""
        with _gate(self.cache):
            return not self.users() and self._set_aside()

    def remove_damaged(self) -> None:
        """Remove it if it is damaged still, whoever reads it, unless it is made anew already."""
        with locked(self.lock) as mine, _gate(self.cache):
            if mine and self.is_done and self.damaged():
                self._set_aside()

    def remove_partial(self) -> bool:
        """Remove what was begun, unless somebody is at it; whether it was removed."""
        with locked(self.lock) as mine:
            return mine and not self.users() and _discard(self.partial)

    def _set_aside(self) -> bool:
        if not self.is_done:
            return False
        if foreign := self.foreign():
            raise self._damaged(f"has files that edgepack did not write: {foreign[0]}")
        return _discard(self.folder)

    def _damaged(self, what: str) -> EdgepackError:
        return EdgepackError(
            f"cache: the {self.stage} stage {self.key} {what}",
            hint=f"delete {self.folder} and run again: that stage is then made anew",
        )


def digests(paths: Sequence[Path]) -> list[str | None]:
    """sha256 of files; None for those that cannot be read."""
    with ThreadPoolExecutor(HASHING) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None


def _discard(folder: Path) -> bool:
    """Remove a folder of ours, all at once for those who look for it."""
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{REMOVED}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    shutil.rmtree(aside, ignore_errors=True)  # `disk.clean` removes what a killed process leaves
    return True


@contextmanager
def _gate(cache: Path) -> Iterator[None]:
    with locked(lock_of("gate", cache), wait=-1):
        yield


def _held(lock: Path) -> Holder | None:
    """Who holds a lock; None if nobody does."""
    if not lock.exists():
        return None
    with locked(lock) as mine:
        return None if mine else holder(lock) or UNKNOWN


# ---------------------------------------------------------------------------- handing over


class _Note(Untrusted):
    """What a killed process was about to do: rename `working`, whose inode this is, to `out`, and
    remove the results, (stage, key), that are in it."""

    working: str
    out: str
    inode: list[int] = Field(min_length=2, max_length=2)
    results: list[list[str]]


@contextmanager
def handing_over(results: Sequence[Result], working: Path, out: Path) -> Iterator[None]:
    """Remove `results`, whose files are in the folder `working`, once the body has renamed that to
    `out`: not before, since making them took long; and if the process is killed in between,
    `settle` does it."""
    if not results:
        yield
        return
    name = secrets.token_hex(6)
    note = root() / HANDED / f"{name}.json"
    content = _Note(
        working=str(working.resolve()),
        out=str(out.resolve()),
        inode=_inode(working),
        results=[[result.stage, result.key] for result in results],
    )
    with locked(lock_of(f"{HANDED}-{name}"), wait=-1):
        with suppress(OSError):  # on a full disk a kill may leave the results here
            note.parent.mkdir(parents=True, exist_ok=True)
            with atomic(note) as temporary:
                temporary.write_text(content.model_dump_json(), encoding="utf-8")
            sync(note.parent)
        try:
            yield
        finally:  # after an error or a signal too
            _finish(content)
            note.unlink(missing_ok=True)


def settle() -> None:
    """Finish what processes that were killed while they handed results over had begun."""
    for path in sorted((root() / HANDED).glob("*.json")):
        with locked(lock_of(f"{HANDED}-{path.stem}")) as mine:
            if mine:
                _settle(path)
    for path in (root() / HANDED).glob("*.json.tmp"):
        path.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    try:
        note = validate(_Note, read_json(path), path.name)
    except (OSError, EdgepackError):  # nobody writes it any more: of another version, or damaged
        path.unlink(missing_ok=True)
        return
    if _finish(note) or not Path(note.working).exists():  # else `output.folder` deals with that
        path.unlink(missing_ok=True)


def _finish(note: _Note) -> bool:
    """Remove the results if they stand in their new place; whether they do."""
    if _inode(Path(note.out)) != note.inode:
        return False
    for stage, key in note.results:
        with suppress(EdgepackError):  # with files of somebody else in it, it stays
            Result(root(), Path(stage).name, Path(key).name).remove()
    return True


def _inode(path: Path) -> list[int]:
    """Device and number of a folder; of none, what no folder has."""
    try:
        found = path.stat()
    except OSError:
        return [-1, -1]
    return [found.st_dev, found.st_ino]
