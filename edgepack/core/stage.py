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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgepack.core import fingerprint
from edgepack.core.disk import atomic, lock_of, locked, root, sync, sync_tree
from edgepack.core.errors import EdgepackError
from edgepack.core.untrusted import Untrusted, read_json, validate

LIST = "stage.json"
"""What a finished stage says of itself: what it was made of and with, and its files' sha256."""
VERSIONS = ("edgepack", "numba", "numpy", "torch")
"""Told in `LIST`, not part of the key: a cache survives an upgrade of these."""


class Listed(Untrusted):
    """The part of `LIST` that is read again: file → sha256."""

    files: dict[str, str]


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe: its folder's place follows from what goes in.

    `code` are the modules (or packages) whose code the result depends on, with all they import.
    """

    name: str
    code: tuple[str, ...]
    options: Mapping[str, Any]
    inputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """Hex digest of everything that determines the result."""
        code = fingerprint.digest(*self.code)
        content = [self.name, code, dict(self.options), list(self.inputs)]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where the finished stage stands."""
        return root() / self.name / self.key

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
        listed = self._listed()
        if all(_sha256(self.folder / name) == known for name, known in listed.items()):
            return True
        for name in (*listed, LIST):
            (self.folder / name).unlink(missing_ok=True)
        for folder in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        try:
            self.folder.rmdir()
        except OSError:
            raise self._damaged("is damaged and has files that edgepack did not write") from None
        return False

    def _listed(self) -> Mapping[str, str]:
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
        files = (p for p in sorted(self.partial.rglob("*")) if p.is_file() and p.name != LIST)
        content = {
            "stage": self.name,
            "options": dict(self.options),
            "inputs": list(self.inputs),
            "versions": {
                "python": sys.version.split()[0],
                **{name: version(name) for name in VERSIONS},
            },
            "files": {p.relative_to(self.partial).as_posix(): _sha256(p) for p in files},
        }
        with atomic(self.partial / LIST) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str | None:
    """Hex digest of a file's content, None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
