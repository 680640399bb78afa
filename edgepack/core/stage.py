"""Content-addressed stage folders ``STAGE/KEY``, written as ``KEY.partial``, renamed when whole.

key = sha256(stage, digest of the code that does the work, options, keys of the inputs): the same
work is never done twice, a changed option or program never meets an old result, and a killed run
finds its finished files in the partial folder. Failures are never stored. A finished folder has a
list of its files with their sha256, so that a damaged one is noticed before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import Field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from edgepack.core import fingerprint
from edgepack.core.disk import TEMPORARY, atomic, lock_of, locked, root, sha256, sync, sync_tree
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.untrusted import Untrusted, read_json, validate
from edgepack.errors import EdgepackError

CACHE = "_handed_over_from"
LIST = "stage.json"
"""What a finished stage says of itself: what it was made of and with, and its files' sha256."""
HASHING = 4
"""Files that are hashed side by side."""
VERSIONS = ("edgepack", "numba", "numpy", "torch")
"""Told in `LIST`, not part of the key: a cache survives an upgrade of these."""


class Listed(Untrusted):
    """The part of `LIST` that is read again: file → sha256."""

    files: dict[str, str]


class Stage(ABC):
    """One step from a recipe to a folder: what goes in, and how what comes out is made.

    Subclasses are frozen dataclasses of the models, texts and earlier stages that they read, and of
    the options that they heed.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: ClassVar[str]
    """Its folder in the cache, and its name in reports and progress."""
    code: ClassVar[tuple[str, ...]]
    """Modules (or packages) whose code the result depends on, with all that they import."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The keys of what goes in: models, texts, other stages."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """All else that the result depends on, as JSON."""

    @abstractmethod
    def run(self, folder: Path, executor: Executor) -> Steps[None]:
        """Make the result in `folder`, which holds what a killed run finished. Work that consists
        of many items alike goes to `executor`."""

    def memory(self) -> int:
        """Expected peak bytes while it runs, beside those of the process."""
        return 0

    def output(self) -> str | None:
        """The part of the output folder that its files go to ("": the folder itself), from where
        they are no longer kept in the cache; None: they stay there."""
        return None

    def facts(self) -> dict[str, Any]:
        """What manifests and plans say of it, as far as it is known, by their key for that."""
        return {}

    def warnings(self) -> list[str]:
        """What is to be said of the finished result."""
        return []

    @property
    def label(self) -> str:
        """What plans and manifests call it: its name, unless a plan has several such stages."""
        return self.name

    @property
    def key(self) -> str:
        """Hex digest of everything that determines the result."""
        code = fingerprint.digest(*self.code)
        content = [self.name, code, self.options(), list(self.inputs)]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def complete(self, executor: Executor) -> Steps[None]:
        """Run it, unless its result is there; what a killed run finished is not done again."""
        if not self.is_whole():
            with self.writing() as folder:
                yield from self.run(folder, executor)

    def drop(self) -> None:
        """Remove the finished result, which stands elsewhere now."""
        self._remove(self.files())

    def __getstate__(self) -> dict[str, Any]:
        """Its fields, and which cache it is in: what is computed from them is computed anew
        elsewhere."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {CACHE: self._cache.resolve()}

    @property
    def folder(self) -> Path:
        """Where the finished stage stands."""
        return self._cache / self.name / self.key

    @property
    def _cache(self) -> Path:
        """The cache here, or for a stage that was handed over the one that it comes from."""
        found: Path | None = self.__dict__.get(CACHE)
        return root() if found is None else found

    @property
    def partial(self) -> Path:
        """Where an unfinished one is being written."""
        return self.folder.with_name(self.key + ".partial")

    @property
    def is_done(self) -> bool:
        """Whether the result is there; `is_whole` looks at its files."""
        return self.folder.is_dir()

    def is_whole(self) -> bool:
        """Whether the result is there and its files are those that were written: all are read.

        A damaged result (a bad disk, an interrupted copy) is removed, to be made again; one whose
        list of files is lost is the user's to remove.
        """
        if not self.is_done:
            return False
        listed = self.files()
        if all(_digest(self.folder / name) == known for name, known in listed.items()):
            return True
        self._remove(listed)
        return False

    def _remove(self, listed: Mapping[str, str]) -> None:
        """Remove the files of a result; others, which edgepack did not write, it leaves alone."""
        for name in (*listed, LIST):
            (self.folder / name).unlink(missing_ok=True)
        for folder in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        try:
            self.folder.rmdir()
        except OSError:
            raise self._damaged("is damaged and has files that edgepack did not write") from None

    def files(self) -> Mapping[str, str]:
        """Name → sha256 of every file of the finished result."""
        path = self.folder / LIST
        try:
            return validate(Listed, read_json(path), path.name).files
        except (OSError, EdgepackError) as error:
            raise self._damaged(f"is damaged ({error})") from None

    def _damaged(self, what: str) -> EdgepackError:
        return EdgepackError(
            f"cache: the {self.name} stage {self.folder.name} {what}",
            hint=f"delete {self.folder} and run again: that stage is then made anew",
        )

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """The partial folder, renamed to the finished one if the body does not raise."""
        with locked(lock_of(f"{self.name}-{self.key}")) as mine:
            if not mine:
                raise EdgepackError(
                    f"another edgepack is working on the same {self.name} stage",
                    hint="wait for it to end; both would write the same files",
                )
            self.partial.mkdir(parents=True, exist_ok=True)
            yield self.partial
            if self.is_done:  # another run was through first: the same key, the same content
                shutil.rmtree(self.partial)
                return
            self._write_list()
            sync_tree(self.partial)
            self.partial.rename(self.folder)
            sync(self.folder.parent)

    def _write_list(self) -> None:
        for leftover in self.partial.rglob(f"*{TEMPORARY}"):  # of a killed run
            leftover.unlink()
        files = [p for p in sorted(self.partial.rglob("*")) if p.is_file() and p.name != LIST]
        with ThreadPoolExecutor(HASHING) as pool:
            digests = list(pool.map(_digest, files))
        names = (path.relative_to(self.partial).as_posix() for path in files)
        content = {
            "stage": self.name,
            "options": self.options(),
            "inputs": list(self.inputs),
            "versions": {
                "python": sys.version.split()[0],
                **{name: version(name) for name in VERSIONS},
            },
            "files": dict(zip(names, digests, strict=True)),
        }
        with atomic(self.partial / LIST) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _digest(path: Path) -> str | None:
    """sha256 of a file, None if it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return None
