"""The models that a page can choose, by ids that are no paths, and what they have learnt."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Any

from edgepack.adapters.base import GGUF, PackedBase
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.adapters import FILE, Found, listed_for, usable
from edgepack.core.artifact import Artifact
from edgepack.core.disk import atomic, root, sha256
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import EdgepackError
from edgepack.runtimes.gguf_check import check_model

NAME, BASE, FACTORS = "name.txt", "base.gguf", "factors.gguf"
"""Files of a model that was imported."""
ID = re.compile(r"[0-9a-f]{16}")


def home() -> Path:
    """Where the demo keeps what it has itself: imported models, trainings that are under way."""
    return root() / "demo"


@dataclass(frozen=True)
class Model:
    """A packed model; `places` is the folder whose `adapters/` has what it learnt."""

    base: PackedBase
    places: Path
    name: str
    imported: bool = False

    @cached_property
    def id(self) -> str:
        """The same each time, and no path."""
        return digest_of(str(self.base.file.resolve()).encode()).hexdigest()[:16]

    @cached_property
    def header(self) -> GgufHeader:
        """Of the base, checked; raises `EdgepackError` for a file that llama.cpp does not take."""
        return check_model(self.base.file)

    @property
    def factors(self) -> Path | None:
        """The GGUF of L and R."""
        return self.base.factors

    def adapter(self, name: object) -> Path:
        """The file of what it learnt under a name, its bytes compared."""
        for found in self.learnt():
            if found.name == name:
                usable(found, GGUF, factors=False)
                return found.folder / FILE
        raise EdgepackError(f"{self.name} has learnt nothing called {quote(name)}")

    def learnt(self) -> list[Found]:
        """All that it has learnt, unusable things included."""
        return listed_for(self.places, self.base.identity)

    def describe(self) -> dict[str, Any]:
        """As `models` has it."""
        files = [self.base.file, *([self.factors] if self.factors else [])]
        try:
            architecture, problem = self.header.metadata["general.architecture"][0], None
        except EdgepackError as error:
            architecture, problem = "", error.message
        return {
            "id": self.id,
            "name": self.name,
            "bytes": sum(file.stat().st_size for file in files if file.is_file()),
            "sha256": self.base.files[self.base.file.name],
            "architecture": architecture,
            "factors": self.factors is not None,
            "adapters": [_describe(found) for found in self.learnt()],
            "problem": problem,
        }


def _describe(found: Found) -> dict[str, Any]:
    about = found.about
    written = datetime.fromtimestamp(found.folder.stat().st_mtime, UTC)
    return {
        "name": found.name,
        "examples": about.about.get("examples") if about else None,
        "bytes": about.bytes if about else 0,
        "created": written.isoformat(timespec="seconds"),
        "problem": found.problem,
    }


class Store:
    """The models named on the command line, and those that were imported."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._named = [_open(path) for path in paths]
        self.refresh()

    def refresh(self) -> None:
        """Look for imported models again."""
        folders = sorted(folder for folder in _imports().glob("*") if ID.fullmatch(folder.name))
        every = [*self._named, *(_imported(folder) for folder in folders)]
        self.models = {model.id: model for model in every}

    def get(self, name: object) -> Model:
        """The model with an id."""
        model = self.models.get(name) if isinstance(name, str) else None
        if model is None:
            raise EdgepackError("there is no such model", hint="load the page again")
        return model

    def add(self, base: Path, factors: Path | None, name: str) -> Model:
        """Take in checked files that were sent; they are moved. The same bytes again are the same
        model; other factors make another one."""
        files = {BASE: sha256(base)} | ({FACTORS: sha256(factors)} if factors else {})
        folder = _imports() / digest_of("".join(files.values()).encode()).hexdigest()[:16]
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        base.rename(partial / BASE)
        if factors is not None:
            factors.rename(partial / FACTORS)
        (partial / NAME).write_text(name, encoding="utf-8")
        (partial / "files.json").write_text(json.dumps(files), encoding="utf-8")
        if folder.is_dir():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
        self.refresh()
        return next(model for model in self.models.values() if model.places == folder)

    def remove(self, model: Model) -> None:
        """Delete an imported model; one that was named on the command line is not ours."""
        if not model.imported:
            raise EdgepackError(
                f"{model.name} was named on the command line, and is not deleted from here",
                hint="start edgepack demo without it",
            )
        gone = model.places.with_name(f"{model.places.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)  # of a killed run
        model.places.rename(gone)
        shutil.rmtree(gone)
        self.refresh()

    def remove_adapter(self, model: Model, name: object) -> None:
        """Delete what was learnt under a name."""
        for found in model.learnt():
            if found.name == name:
                gone = found.folder.with_name(f".{found.name}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                found.folder.rename(gone)
                shutil.rmtree(gone)
                return
        raise EdgepackError(f"{model.name} has learnt nothing called {quote(name)}")


def _imports() -> Path:
    return home() / "models"


def _imported(folder: Path) -> Model:
    name = shorten((folder / NAME).read_text(encoding="utf-8"), 100)
    files = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    return Model(PackedBase(folder, name, GGUF, files), folder, name, imported=True)


def _open(path: Path) -> Model:
    """A model named on the command line; its files are read once, and compared."""
    if path.is_file() and path.suffix == ".gguf":
        check_model(path)
        base = PackedBase(path.parent, path.stem, GGUF, {path.name: _known_sha256(path)})
        return Model(base, home() / "beside" / base.identity.digest[:16], path.stem)
    if path.is_dir() and not (path / "manifest.json").is_file() and any(path.rglob("*.onnx")):
        raise _no_onnx(path)
    artifact = Artifact.open(path)
    target = artifact.manifest["target"]
    if target == "onnx":
        raise _no_onnx(path)
    if target != GGUF:
        raise EdgepackError(
            f"{path}: is no model for a runtime, but a {target}",
            hint="build it with --target gguf",
        )
    model = Model(PackedBase.open(path), path, path.resolve().name)
    _ = model.header
    return model


def _no_onnx(path: Path) -> EdgepackError:
    return EdgepackError(
        f"{path}: is an ONNX folder, and the programs of the demo run GGUF",
        hint="build the recipe with --target gguf; edgepack chat runs both",
    )


def _known_sha256(path: Path) -> str:
    """The digest of a file, which is read only if it has changed since."""
    stat = path.stat()
    key = digest_of(str(path.resolve()).encode()).hexdigest()[:16]
    note = home() / "digests" / f"{key}.json"
    state = [stat.st_size, stat.st_mtime_ns]
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = sha256(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    with atomic(note) as temporary:
        temporary.write_text(json.dumps({"state": state, "sha256": found}), encoding="utf-8")
    return found
