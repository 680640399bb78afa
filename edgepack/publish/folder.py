"""What of a folder is uploaded: the files that edgepack wrote, unchanged, and a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgepack.core import adapters
from edgepack.core.artifact import MANIFEST, Artifact, File, FileName, digest
from edgepack.core.untrusted import Untrusted, read_json, shorten, validate
from edgepack.errors import ExportError
from edgepack.publish import card

EXTRACTED = "extract.json"
"""The report of `edgepack extract-lora`, which has the digests of its files."""


class _Extracted(Untrusted):
    """What an extracted adapter says of itself."""

    base: str
    files: Annotated[dict[FileName, File], Field(max_length=1000)]


@dataclass(frozen=True)
class Upload:
    """Files of `folder`, by their names in it, and files that are `made` for the repository.
    `left` are files of the folder that edgepack did not write, which stay here."""

    folder: Path
    files: tuple[str, ...]
    left: tuple[str, ...]
    made: Mapping[str, bytes] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Name in the repository → bytes, in the order of names."""
        found = {name: (self.folder / name).stat().st_size for name in self.files}
        return dict(sorted((found | {name: len(data) for name, data in self.made.items()}).items()))


@dataclass(frozen=True)
class Described:
    """What a folder says of itself: in which file, and the digest and size of its other files. Of
    an adapter, that is adapter.json or extract.json."""

    folder: Path
    about: Mapping[str, Any]
    name: str
    files: Mapping[str, Mapping[str, Any]]
    again: str
    """What to do if a file is not the one that is described."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Every file that is missing or was changed, and which of both. All are hashed."""
        for name, known in self.files.items():
            path = self.folder / name
            if not path.is_file() or digest(path) != dict(known):
                changed = f"is not the file that {self.name} describes"
                yield name, changed if path.exists() else "is missing"

    def check(self) -> None:
        """Refuse a folder with such a file."""
        for name, problem in self.problems():
            where = shorten(str(self.folder), 120)
            raise ExportError(f"{where}: {name} {problem}", hint=self.again)

    def others(self) -> list[str]:
        """Files of the folder that it says nothing of."""
        found = (path for path in sorted(self.folder.rglob("*")) if not _is_folder(path))
        names = (path.relative_to(self.folder).as_posix() for path in found)
        return [name for name in names if name not in self.files and name != self.name]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def describe(folder: Path) -> Described:
    """An output folder, an adapter of `edgepack finetune`, or one of `edgepack extract-lora`; no
    file is hashed. Raises `EdgepackError` for any other folder."""
    if not folder.is_dir():
        raise ExportError(
            f"{shorten(str(folder), 120)}: there is no such folder",
            hint="name an output folder, or an adapter's",
        )
    if (folder / adapters.ABOUT).is_file():
        about = adapters.read_about(folder).model_dump()
        again = "copy the adapter again, or train it again"
        return Described(folder, about, adapters.ABOUT, about["files"], again)
    if (folder / EXTRACTED).is_file() and not (folder / MANIFEST).exists():
        where = shorten(str(folder / EXTRACTED), 120)
        content = read_json(folder / EXTRACTED, place=where)
        about = validate(_Extracted, content, where, hint="extract the adapter again").model_dump()
        return Described(folder, about, EXTRACTED, about["files"], "extract the adapter again")
    manifest = Artifact.read(folder).manifest
    again = "copy the folder again, or build it again"
    return Described(folder, manifest, MANIFEST, manifest["files"], again)


def gather(folder: Path) -> Upload:
    """What is uploaded of such a folder. Every file is hashed.

    Raises `EdgepackError` for files that are missing or were changed.
    """
    found = describe(folder)
    found.check()
    names = (*sorted(found.files), found.name)
    made = {} if card.NAME in names else {card.NAME: card.make(folder, found.about).encode()}
    return Upload(folder, names, tuple(found.others()), made)
