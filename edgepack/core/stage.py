"""Content-addressed stage folders ``STAGE/KEY``, written as ``KEY.partial``, renamed when whole.

key = sha256(stage, digest of the code that does the work, options, keys of the inputs): the same
work is never done twice, a changed option or program never meets an old result, and a killed run
finds its finished files in the partial folder. Failures are never stored. A finished folder has a
list of its files with their sha256, so that a damaged one is noticed before it is used. A second
run that comes to the same stage waits for the first, and takes its result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import Field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from edgepack.core import fingerprint
from edgepack.core.disk import TEMPORARY, atomic, holder, root, signed, sync, sync_tree, writing_to
from edgepack.core.executor import Executor
from edgepack.core.headers import NotReadError
from edgepack.core.progress import Progress, Steps
from edgepack.core.results import LIST, Result, digests

CACHE = "_handed_over_from"
PAUSE = 0.2
"""Seconds between looks at whether another run is through with a stage."""
VERSIONS = ("edgepack", "numba", "numpy", "torch")
"""Told in `LIST`, not part of the key: a cache survives an upgrade of these."""


class Disk(NamedTuple):
    """Bytes that a stage writes: at most while it runs, and when it is done."""

    peak: int
    kept: int


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

    def disk(self) -> Disk:
        """Expected bytes in the cache."""
        return Disk(0, 0)

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
        """Run it, unless its result is there; what a killed run finished is not done again. While
        another process runs it, wait: either its result is there then, or it died."""
        while not self.is_whole():
            with signed(self.result.lock) as mine:
                if mine and not self.is_done:
                    with self._writing() as folder:
                        yield from self.run(folder, executor)
                    return
            if not mine:
                who = holder(self.result.lock) or "another edgepack"
                yield Progress(self.name, 0, 1, f"waiting for {who}, which does the same")
                time.sleep(PAUSE)

    def in_use(self) -> AbstractContextManager[None]:
        """Nobody removes the result while the body works, even if it is made only now."""
        return self.result.in_use()

    def drop(self) -> None:
        """Remove the finished result; one that another run reads is left to that run."""
        self.result.remove()

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
    def result(self) -> Result:
        """The place of its result."""
        return Result(self._cache, self.name, self.key)

    @property
    def partial(self) -> Path:
        """Where an unfinished one is being written."""
        return self.result.partial

    @property
    def is_done(self) -> bool:
        """Whether the result is there; `is_whole` looks at its files. While a plan is made, what
        was made of files that nobody has read yet is not known to be there."""
        return self.known_key is not None and self.folder.is_dir()

    @property
    def has_begun(self) -> bool:
        """Whether a killed run has left something of it, as far as that is known."""
        return self.known_key is not None and self.partial.is_dir()

    @property
    def known_key(self) -> str | None:
        """The key; None while a plan is made and files that go in have not been read yet."""
        try:
            return self.key
        except NotReadError:
            return None

    def is_whole(self) -> bool:
        """Whether the result is there and its files are those that were written: all are read.

        A damaged result (a bad disk, an interrupted copy) is removed, to be made again; one whose
        list of files is lost is the user's to remove.
        """
        result = self.result
        if not result.is_done:
            return False
        if result.damaged():
            result.remove_damaged()
            return False
        result.touch()
        return True

    def files(self) -> Mapping[str, str]:
        """Name → sha256 of every file of the finished result."""
        return self.result.files()

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """The partial folder, renamed to the finished one if the body does not raise."""
        self.partial.mkdir(parents=True, exist_ok=True)
        with writing_to(self.partial):
            yield self.partial
            if self.is_done:  # on a file system whose locks do not reach another machine
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
        names = [path.relative_to(self.partial).as_posix() for path in files]
        content = {
            "stage": self.name,
            "model": self.model_name,
            "options": self.options(),
            "inputs": list(self.inputs),
            "versions": {
                "python": sys.version.split()[0],
                **{name: version(name) for name in VERSIONS},
            },
            "files": dict(zip(names, digests(files), strict=True)),
        }
        with atomic(self.partial / LIST) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @property
    def model_name(self) -> str | None:
        """The name of the model that it is about, for people: its own, or its inputs'."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            found = value.model_name if isinstance(value, Stage) else _named(value)
            if found:
                return found
        return None


def _named(value: Any) -> str | None:
    source = getattr(value, "source", None)
    name = source.get("model") if isinstance(source, Mapping) else None
    return name if isinstance(name, str) else None
