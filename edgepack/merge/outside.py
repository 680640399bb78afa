"""A model that gives a merge its tokenizer and nothing else: `tokenizer_source` may name any.

Only the files of the tokenizer and the two configurations are read, or downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.checkpoint import digests, hub
from edgepack.checkpoint.folder import CONFIG, GENERATION, TOKENIZER
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.core.untrusted import shorten
from edgepack.errors import RecipeError
from edgepack.merge.vocabulary import Vocabulary
from edgepack.recipe.references import Reference

KEY = "tokenizer_source"
FILES = (CONFIG, GENERATION, *TOKENIZER)


@dataclass(frozen=True, eq=False)
class Outside:
    """The tokenizer of a model that is not merged. `name` is for people and differs from those of
    the inputs; `revision` is the commit of a Hub snapshot, None for a folder of this machine."""

    reference: Reference
    name: str
    folder: Path
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json; empty if there is none."""
        return self._json(CONFIG)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json; empty if there is none."""
        return self._json(GENERATION)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Its tokens. Rows are those that its configuration states (padding is kept), or as many as
        there are ids."""
        tokenizer = from_folder(self.folder)
        rows = max(tokenizer.get_vocab().values(), default=-1) + 1
        stated = self.config.get("vocab_size")
        return Vocabulary(self.name, tokenizer, stated if isinstance(stated, int) else rows)

    @cached_property
    def digests(self) -> dict[str, str]:
        """File → sha256 of all that is read."""
        paths = sorted({path for pattern in FILES for path in self.folder.glob(pattern)})
        files = SourceFiles()
        found = {p.relative_to(self.folder).as_posix(): p for p in paths if p.is_file()}
        return {name: files.sha256(path) for name, path in found.items()}

    @property
    def key(self) -> str:
        """Hex digest of its content."""
        return digests.combine(self.digests)

    @property
    def source(self) -> Mapping[str, Any]:
        """Where it came from, as `Checkpoint.source`."""
        if self.revision is not None:
            name = self.reference.model.partition("@")[0]
            return {"model": name, "kind": "hub", "revision": self.revision}
        return {"model": self.name, "kind": "folder", "files": self.digests}

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        content = SourceFiles().read_json(path) if path.is_file() else {}
        return content if isinstance(content, dict) else {}


def open_outside(reference: Reference, base: Path, taken: set[str]) -> Outside:
    """Find the tokenizer of a folder or a hub id. Relative paths start at `base`; names in `taken`
    belong to inputs. Raises `RecipeError` if there is none."""
    name = reference.model
    path = base / Path(name).expanduser()
    revision = None
    if not path.is_dir():
        if path.exists() or not hub.ID.fullmatch(name):
            what = "is no folder" if path.exists() else "there is no such folder"
            raise RecipeError(
                f"{KEY}: {shorten(name, 100)}: {what}",
                hint="name a model of the merge, a folder with tokenizer.json, or a hub id",
            )
        path = hub.snapshot(name, FILES)
        revision = path.name
    if not any(file.is_file() for pattern in TOKENIZER for file in path.glob(pattern)):
        raise RecipeError(
            f"{KEY}: {shorten(name, 100)} has no tokenizer",
            hint="name a model of the merge, or a folder with tokenizer.json",
        )
    shown = shorten(name if revision is not None else path.resolve().name, 80)
    return Outside(reference, f"{shown}-tokenizer" if shown in taken else shown, path, revision)
