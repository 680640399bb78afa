"""Adapters against the model that they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgepack.adapters import files
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import adapters
from edgepack.core.adapters import ABOUT, FILE, FOLDER, TUNED, Found
from edgepack.errors import EdgepackError
from edgepack.runtimes.gguf_check import check_adapter
from edgepack.verify import gguf
from edgepack.verify.checks import Check, Skipped, carry_out
from edgepack.verify.safetensors import tensors
from edgepack.verify.subject import Subject


def checks(subject: Subject, wanted: Sequence[str]) -> list[Check]:
    """A check for every adapter in the folder, and for those that are `wanted`: names in it, or
    paths of others."""
    if not subject.is_packed:
        why = "the folder is no packed model"
        return [Check(f"adapter {Path(name).name}", "failed", why) for name in wanted]
    found = adapters.listed(subject.folder)
    inside = {one.name for one in found}
    made: list[tuple[str, Callable[[], str]]] = [
        (one.name, partial(_of, subject, one)) for one in found
    ]
    others = [name for name in wanted if name not in inside]
    made += [(Path(name).name, partial(_elsewhere, subject, name)) for name in others]
    return [check for name, one in made for check in carry_out(f"adapter {name}", one)]


def _of(subject: Subject, found: Found) -> str:
    if found.problem:
        raise EdgepackError(found.problem)
    return _fits(subject, found.folder)


def _elsewhere(subject: Subject, name: str) -> str:
    path = Path(name)
    if not path.exists():
        path = adapters.find(subject.folder, name)  # it says which ones there are
    return _fits(subject, path)


def _fits(subject: Subject, path: Path) -> str:
    """The base that its files name is this model, and every pair has a weight of its shape."""
    for name in (FILE, TUNED):
        if (path / name).is_file():
            gguf.alone(path / name)
            check_adapter(path / name, GgufHeader(subject.base.file))
    adapter = files.read(path, subject.base)
    doubts = f" ({'; '.join(adapter.notes)})" if adapter.notes else ""
    return f"of this base, {len(adapter.weights)} pairs{doubts}"


def alone(subject: Subject) -> str:
    """The structure of an adapter's own files."""
    count = 0
    for path in subject.listed(".gguf"):
        count += gguf.alone(path)
    for path in subject.listed(".safetensors"):
        count += len(tensors(path))
    return f"{count} tensors"


def base(subject: Subject) -> str:
    """The base of an adapter that lies in the folder of its model."""
    home = subject.folder.resolve().parent.parent
    about = subject.manifest
    if subject.described.name != ABOUT or subject.folder.resolve().parent.name != FOLDER:
        raise Skipped(f"made for {_name(about)}; edgepack verify DIR --adapter {subject.folder}")
    return _fits(Subject.open(home), subject.folder.resolve())


def _name(about: object) -> str:
    known = about.get("base") if isinstance(about, dict) else None
    return str(known.get("name")) if isinstance(known, dict) else str(known)
