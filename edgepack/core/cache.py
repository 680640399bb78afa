"""The cache as people look after it: which results are in it, whether they are whole, what may go.

Only folders ``STAGE/KEY`` and ``STAGE/KEY.partial`` are looked at. Notes, digests and compiled
programs, which lie beside them, stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from edgepack.core.disk import Holder
from edgepack.core.progress import Progress, Steps
from edgepack.core.results import LIST, PARTIAL, Result
from edgepack.core.untrusted import quote
from edgepack.errors import EdgepackError, RecipeError

KEY = re.compile("[0-9a-f]{32}")
SHORT = 12
"""Characters of a key that are shown."""
LEAST = 4
"""Fewest characters that name a key."""
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

State = Literal["whole", "partial", "in use", "damaged"]


@dataclass(frozen=True)
class Entry:
    """A result that is finished, or that was begun (`partial`)."""

    result: Result
    partial: bool = False

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.result.partial if self.partial else self.result.folder

    @cached_property
    def bytes(self) -> int:
        """Of all files."""
        return _bytes(self.folder)

    @cached_property
    def made(self) -> float:
        """When the list of its files was written, in seconds since 1970."""
        return _changed(self.folder)

    @cached_property
    def used(self) -> float:
        """When it was used last: for one that was begun, written to."""
        if not self.partial:
            return _changed(self.folder / LIST) or self.made
        return max(map(_changed, (self.folder, *self.folder.rglob("*"))))

    @cached_property
    def model(self) -> str | None:
        """The name of the model that it is about, if that is known."""
        try:
            return None if self.partial else self.result.read_list().model
        except EdgepackError:
            return None

    @cached_property
    def holders(self) -> list[Holder]:
        """The processes that make or read it."""
        maker = self.result.maker() if self.partial else None
        return [*([maker] if maker else []), *self.result.users()]

    @cached_property
    def state(self) -> State:
        """What can be said without reading its files."""
        if self.holders:
            return "in use"
        if self.partial:
            return "partial"
        try:
            self.result.files()
        except EdgepackError:
            return "damaged"
        return "whole"

    def remove(self) -> bool:
        """Remove it, unless somebody is at it; whether it was removed. Raises `EdgepackError` if it
        has files that edgepack did not write."""
        return self.result.remove_partial() if self.partial else self.result.remove()

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stage": self.result.stage,
            "key": self.result.key,
            "state": self.state,
            "bytes": self.bytes,
            "made": self.made,
            "used": self.used,
            "model": self.model,
            "processes": [vars(one) for one in self.holders],
        }


def entries(cache: Path) -> list[Entry]:
    """All results, by stage, those that were used last first."""
    found = [*_entries(cache)]
    return sorted(found, key=lambda entry: (entry.result.stage, -entry.used))


def _entries(cache: Path) -> Iterator[Entry]:
    for folder in cache.glob("*/*"):
        key = folder.name.removesuffix(PARTIAL)
        links = folder.is_symlink() or folder.parent.is_symlink()
        if KEY.fullmatch(key) and folder.is_dir() and not links:
            yield Entry(Result(cache, folder.parent.name, key), folder.name != key)


def find(known: Sequence[Entry], names: Iterable[str]) -> list[Entry]:
    """Those that are named: by stage, by the beginning of a key, or by both as STAGE/KEY."""
    found: dict[Path, Entry] = {}
    for name in names:
        stage, _, key = name.rpartition("/")
        matching = [
            entry
            for entry in known
            if name == entry.result.stage
            or (stage in ("", entry.result.stage) and _begins(entry.result.key, key))
        ]
        if not matching:
            raise RecipeError(
                f"cache: {quote(name)} is neither a stage nor a key",
                hint=f"`edgepack cache ls` shows them; a key needs {LEAST} characters at least",
            )
        keys = {entry.result.key for entry in matching}
        if len(keys) > 1 and name != matching[0].result.stage:
            raise RecipeError(f"cache: {len(keys)} keys begin with {quote(key)}", hint="give more")
        found |= {entry.folder: entry for entry in matching}
    return [*found.values()]


def _begins(key: str, start: str) -> bool:
    return len(start) >= LEAST and key.startswith(start)


def unused(known: Sequence[Entry], since: float, keep_last: int = 0) -> list[Entry]:
    """Those that were used last before `since` (seconds since 1970), without the `keep_last` of
    each stage that were used latest."""
    latest_first = sorted(known, key=lambda entry: (entry.result.stage, -entry.used))
    groups = groupby(latest_first, key=lambda entry: entry.result.stage)
    old = (entry for _, group in groups for entry in [*group][keep_last:])
    return [entry for entry in old if entry.used < since]


def verify(known: Sequence[Entry]) -> Steps[dict[Path, list[str]]]:
    """Read all files of finished results: folder → those that are not what was written."""
    finished = [entry for entry in known if not entry.partial]
    total, done = sum(entry.bytes for entry in finished), 0
    damaged: dict[Path, list[str]] = {}
    for entry in finished:
        yield Progress("verify", done, total, f"{entry.result.stage} {entry.result.key[:SHORT]}")
        try:
            wrong = entry.result.damaged()
        except EdgepackError:
            wrong = [LIST]
        if wrong and entry.folder.exists():  # not removed meanwhile
            damaged[entry.folder] = wrong
        done += entry.bytes
    return damaged


def beside(cache: Path, known: Sequence[Entry]) -> dict[str, int]:
    """Bytes of everything else in the cache, by folder."""
    sizes = {path.name: _bytes(path) for path in sorted(cache.glob("*")) if path.is_dir()}
    for entry in known:
        sizes[entry.result.stage] -= entry.bytes
    return {name: size for name, size in sizes.items() if size > 0}


def parse_age(text: str) -> int:
    """Seconds from 30d, 12h, 2w or 90m."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if found is None:
        raise RecipeError(f"--older-than: {quote(text)} is no age", hint="write 30d, 12h or 2w")
    return int(found[1]) * UNITS[found[2]]


def _bytes(folder: Path) -> int:
    return sum(_stat(path)[0] for path in folder.rglob("*") if not path.is_dir())


def _changed(path: Path) -> float:
    return _stat(path)[1]


def _stat(path: Path) -> tuple[int, float]:
    """Bytes and time of change; nothing of what another process has removed meanwhile."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime
