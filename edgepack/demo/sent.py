"""Files that a page sends: checked before they are used."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from edgepack.core.untrusted import shorten
from edgepack.demo.publish import publish
from edgepack.demo.store import Model, Store, home
from edgepack.demo.worker import Json
from edgepack.errors import EdgepackError
from edgepack.runtimes.gguf_check import HOLDS_FACTORS, check_adapter, check_model

Inspect = Callable[[Path, str], Json]
"""What `edgepack-chat` says of a file, which has a name for people; raises `EdgepackError` for one
that it refuses."""


def folder_for(request: str, part: str) -> Path:
    """Where a file of a request arrives; it is new. What the page says is no name of it."""
    folder = home() / "sent" / f"{sha256(request.encode()).hexdigest()[:16]}-{part}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def clear() -> None:
    """Remove what arrived in part, when this process or an earlier one ended."""
    shutil.rmtree(home() / "sent", ignore_errors=True)


def drop(files: Iterable[Path]) -> None:
    """Remove files that arrived, with the folders they are in."""
    for file in files:
        shutil.rmtree(file.parent, ignore_errors=True)


def take_model(store: Store, files: dict[str, Path], inspect: Inspect) -> Model:
    """A model from the files that were sent, by their names there: a base, and its factors if it
    has any. They are moved."""
    kinds = {name: inspect(path, name)["kind"] for name, path in files.items()}
    bases = [name for name, kind in kinds.items() if kind == "model"]
    if len(bases) != 1:
        what = "none of them is a model" if not bases else "there are several models"
        raise EdgepackError(
            f"{', '.join(shorten(name, 60) for name in files)}: {what}",
            hint="choose one model, and its factors.gguf if it has one",
        )
    others = [name for name in files if name != bases[0]]
    if len(others) > 1:
        raise EdgepackError("too many files", hint="choose a model and its factors.gguf")
    if others and kinds[others[0]] == "adapter":
        raise EdgepackError(
            f"{shorten(others[0], 60)}: is what a model learnt, not its factors",
            hint="import the model first, then this for it",
        )
    header = check_model(files[bases[0]])
    factors = files[others[0]] if others else None
    if factors is not None:
        check_adapter(factors, header)
    return store.add(files[bases[0]], factors, clean_name(bases[0]))


def take_adapter(model: Model, name: str, file: Path, inspect: Inspect) -> str:
    """An adapter of a model, checked against it; the name that it gets."""
    if inspect(file, name)["kind"] == "model":
        raise EdgepackError(f"{shorten(name, 60)}: is a model", hint="import it as a model")
    header = check_adapter(file, model.header)
    if HOLDS_FACTORS in header.metadata:
        raise EdgepackError(
            f"{shorten(name, 60)}: holds L and R too", hint="send adapter.gguf beside it"
        )
    chosen = _free(adapter_name(name), {found.name for found in model.learnt()})
    publish(model, chosen, file, {"mode": "stack", "imported": shorten(name, 100)})
    return chosen


def clean_name(name: str) -> str:
    """A model's name for people, from its file's."""
    plain = "".join(c for c in name.removesuffix(".gguf") if c.isprintable() and c not in "/\\")
    return plain.strip()[:100] or "model"


def adapter_name(name: str) -> str:
    """The nearest name that an adapter may have."""
    letters = unicodedata.normalize("NFKD", name.removesuffix(".gguf"))
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"[\u0300-\u036f]", "", letters))
    return plain.lstrip(".-")[:60].rstrip(".") or "notes"


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(new for n in range(2, 10_000) if (new := f"{name}-{n}") not in taken)
