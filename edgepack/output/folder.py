"""The output folder: written beside its place, and renamed into it when it is whole.

Nothing is deleted or replaced but what an earlier build wrote and its manifest lists. At every
moment the old folder or the new one is whole on disk, whenever the process is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.core.adapters import FOLDER as ADAPTERS
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.disk import (
    TEMPORARY,
    atomic,
    lock_of,
    locked,
    no_room,
    root,
    sync,
    sync_tree,
    writing_to,
)
from edgepack.core.results import Result, handing_over, settle
from edgepack.core.stage import Stage
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError, ExportError

MARK, LOCK = "edgepack-output.json", "lock"
"""In a working folder: whose it is (a folder without it is not ours to touch), and whether
somebody is at work in it."""
NEW, OLD = "new", "replaced"
"""In a working folder: the output to come, and the one whose place it takes."""
SHOWN = 60
"""Characters of an output's name in that of its working folder."""
ELSEWHERE = "name another folder to write"


@dataclass(frozen=True)
class Output:
    """An output folder being written. `sources` are what it is made of, `recipe` is the folder of
    the recipe: neither may be replaced. `force` is None where the user has no such option."""

    path: Path
    force: bool | None
    sources: tuple[Path, ...]
    recipe: Path
    work: Path

    @property
    def folder(self) -> Path:
        """Where to write; it exists, and is empty."""
        return self.work / NEW

    def publish(self, results: Sequence[Result] = ()) -> None:
        """Give the written folder its name, once everything in it is on disk. `results` of stages,
        which are in it, are then no longer kept."""
        sync_tree(self.folder)
        with handing_over(results, self.folder, self.path), _explained(self.path):
            if self.path.exists():
                _check_replaceable(self)
                self.path.rename(self.work / OLD)
            self.folder.rename(self.path)
            sync(self.path.parent)
        _remove_listed(self.work / OLD)


@contextmanager
def writing(
    path: Path, *, force: bool | None, sources: Iterable[Path], recipe: Path
) -> Iterator[Output]:
    """Own the output folder `path` while the body works; it calls `Output.publish` at its end.

    All that is wrong with the place is found here, before any work: it exists and may not be
    replaced, it cannot be written, another process writes it. Raises `ExportError`.
    """
    with ExitStack() as stack:
        with _explained(path):
            if path.is_symlink() and not path.exists():
                raise ExportError(f"{shown(path)}: is a link to nowhere", hint=ELSEWHERE)
            path = path.resolve()
            real = tuple(source.resolve() for source in sources)
            output = Output(path, force, real, recipe.resolve(), _working_path(path))
            _make_working_folder(output)
            stack.callback(_discard, output.work)
            name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
            if not stack.enter_context(locked(lock_of(f"output-{name}"))):
                raise _busy(path)
            _recover(output)
            if path.exists():
                _check_replaceable(output)
            stack.enter_context(locked(output.work / LOCK))
            output.folder.mkdir()
            _mark(output)  # once more: unlocked, it was anybody's with another cache to clear up
        with writing_to(path):
            yield output


def place_files(stage: Stage, folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a stage in the output folder, linked where that is possible (the stage is
    dropped once they are there); their entries in the manifest."""
    entries = {}
    for own, sha256 in stage.files().items():
        name = f"{stage.output() or ''}/{own}".lstrip("/")
        source, place = stage.folder / own, folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, place)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, place)
        entries[name] = {"sha256": sha256, "bytes": place.stat().st_size}
    return entries


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the operating system refuses, as an error that names the output; a full disk gets a
    place only."""
    try:
        with writing_to(path):
            yield
    except (OSError, ValueError, RuntimeError) as error:
        if no_room(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{shown(path)}: cannot be written ({reason})"
        raise ExportError(message, hint=ELSEWHERE) from None


def _busy(path: Path) -> ExportError:
    return ExportError(
        f"{shown(path)}: another edgepack is writing it", hint=f"wait for it to end, or {ELSEWHERE}"
    )


def _make_working_folder(output: Output) -> None:
    """Show that the place can be written, before anything else is."""
    parent = output.path.parent
    if any(place.is_file() for place in (parent, *parent.parents)):
        raise ExportError(f"{shown(output.path)}: lies below a file", hint=ELSEWHERE)
    parent.mkdir(parents=True, exist_ok=True)
    _check_place(output)
    output.work.mkdir()
    _mark(output)


def _mark(output: Output) -> None:
    if not (output.work / MARK).exists():
        with atomic(output.work / MARK, durable=False) as temporary:
            temporary.write_text(json.dumps({"output": output.path.name}), encoding="utf-8")


def _check_place(output: Output) -> None:
    """Refuse the places that no output may have, whatever is there."""
    path, cache = output.path, root().resolve()
    if path == cache or path.is_relative_to(cache) or cache.is_relative_to(path):
        raise ExportError(f"{shown(path)}: is or holds the cache, or lies in it", hint=ELSEWHERE)
    for source in (*output.sources, output.recipe):
        if source.is_relative_to(path):
            raise ExportError(
                f"{shown(path)}: is or holds {source.name}, which the build reads", hint=ELSEWHERE
            )


def _check_replaceable(output: Output) -> None:
    """Refuse to replace a folder that is not, file for file, what a build wrote there."""
    path, name = output.path, shown(output.path)
    if not output.force:
        hint = ELSEWHERE if output.force is None else f"--force replaces it, {ELSEWHERE}"
        raise ExportError(f"{name}: already exists", hint=hint)
    if any(path.is_relative_to(source) for source in output.sources):
        raise ExportError(f"{name}: lies in what the build reads", hint=ELSEWHERE)
    if not path.is_dir() or path.is_mount():
        what = "a disk" if path.is_dir() else "a file"
        raise ExportError(f"{name}: is {what}, --force does not replace it", hint=ELSEWHERE)
    if not any(path.iterdir()):
        return
    try:
        foreign = Artifact.read(path).foreign_files()
    except EdgepackError as error:
        raise ExportError(
            f"{name}: is not an output folder as edgepack wrote it, --force does not replace it",
            hint=ELSEWHERE,
        ) from error
    if foreign and foreign[0].startswith(f"{ADAPTERS}/"):
        raise ExportError(
            f"{name}: has adapters ({foreign[0]}), --force does not delete them",
            hint=f"move {ADAPTERS}/ away (they fit the old files only), or {ELSEWHERE}",
        )
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ExportError(
            f"{name}: has files that edgepack did not write: {foreign[0]}{more}",
            hint=f"move them away, or {ELSEWHERE}",
        )


def _working_path(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f"{_prefix(path)}{secrets.token_hex(6)}")


def _prefix(path: Path) -> str:
    return f".{path.name[:SHOWN]}.edgepack-"


def _recover(output: Output) -> None:
    """Finish or remove what a killed process left of writing a folder; refuse if one is at it."""
    path = output.path
    for work in sorted(path.parent.glob(f"{_escaped(_prefix(path))}*")):
        if work == output.work or not _is_of(work, path):
            continue
        with ExitStack() as stack:
            if not stack.enter_context(locked(work / LOCK)):
                raise _busy(path)
            if (work / OLD).exists() and not path.exists():  # killed between the two renames
                (work / NEW).rename(path)
            _remove_listed(work / OLD)
            _discard(work)
        settle()  # it is published now, or gone


def shown(path: Path) -> str:
    """A path in an error: short, and on one line."""
    return shorten(str(path), 150)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _is_of(work: Path, path: Path) -> bool:
    """Whether a folder is a working folder of `path`, by the mark in it. One with nothing else in
    it has its mark not yet, or no more."""
    if work.is_dir() and {place.name for place in work.iterdir()} <= {LOCK, MARK + TEMPORARY}:
        return len(path.name) <= SHOWN
    try:
        mark = json.loads((work / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("output") == path.name


def _remove_listed(folder: Path) -> None:
    """Remove the folder of an earlier build, which was checked to be nothing else. What came into
    it since then stays where it is."""
    if not folder.exists():
        return
    if (folder / MANIFEST).exists():
        for name in (*Artifact.read(folder).manifest["files"], MANIFEST):
            (folder / name).unlink(missing_ok=True)
    for place in (*sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True), folder):
        if not any(place.iterdir()):
            place.rmdir()


def _discard(work: Path) -> None:
    """Remove a working folder; an output that was replaced and is not empty stays."""
    shutil.rmtree(work / NEW, ignore_errors=True)
    if (work / OLD).exists():
        return
    for name in (LOCK, MARK, MARK + TEMPORARY):
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
