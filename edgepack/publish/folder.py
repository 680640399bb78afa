"""What of a folder is uploaded: the files that edgepack wrote, unchanged, and a card."""

from __future__ import annotations

from collections.abc import Mapping
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


def gather(folder: Path) -> Upload:
    """What is uploaded of an output folder, an adapter of `edgepack finetune`, or one of
    `edgepack extract-lora`. Every file is hashed.

    Raises `EdgepackError` for any other folder, and for files that are missing or were changed.
    """
    about, description, listed = _described(folder)
    names = (*sorted(listed), description)
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    others = [path.relative_to(folder).as_posix() for path in inside]
    left = tuple(name for name in others if name not in names)
    made = {} if card.NAME in names else {card.NAME: card.make(folder, about).encode()}
    return Upload(folder, names, left, made)


def _described(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """What a folder says of itself, in which file, and the names of its other files."""
    if not folder.is_dir():
        raise ExportError(f"{shorten(str(folder), 120)}: there is no such folder")
    if (folder / adapters.ABOUT).is_file():
        about = adapters.read_about(folder)
        adapters.check_files(folder, about)
        return about.model_dump(), adapters.ABOUT, list(about.files)
    if (folder / EXTRACTED).is_file() and not (folder / MANIFEST).exists():
        return _extracted(folder)
    manifest = Artifact.open(folder).manifest
    return manifest, MANIFEST, list(manifest["files"])


def _extracted(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    where = shorten(str(folder / EXTRACTED), 120)
    content = read_json(folder / EXTRACTED, place=where)
    about = validate(_Extracted, content, where, hint="extract the adapter again")
    for name, known in about.files.items():
        path = folder / name
        if not path.is_file() or digest(path) != known.model_dump():
            what = "is not the file that it describes" if path.exists() else "is missing"
            raise ExportError(f"{where}: {name} {what}", hint="extract the adapter again")
    return about.model_dump(), EXTRACTED, list(about.files)
