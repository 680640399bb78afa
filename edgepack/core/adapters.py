"""Adapters in an output folder: ``DIR/adapters/NAME/``, each described by its adapter.json.

What is here reads JSON only, so that listing adapters needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgepack.core.artifact import Artifact, Count, File, FileName, digest
from edgepack.core.disk import atomic
from edgepack.core.untrusted import NOT_OPENED, Untrusted, quote, read_json, shorten, validate
from edgepack.errors import EdgepackError

FOLDER = "adapters"
ABOUT = "adapter.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-]|[A-Za-z0-9_]")
"""Names of adapters: one folder on every system, and no path."""
WEIGHTS = (".gguf", ".onnx", ".safetensors", ".onnx_adapter")
"""Suffixes of files with weights; a graph's data files have ``.onnx_data`` in their names."""

FILE, TUNED, PEFT = "adapter.gguf", "factors.gguf", "peft/adapter_model.safetensors"
"""Files of an adapter that a runtime loads: for llama.cpp ΔW, or where only L and R were changed
L·R + ΔW in place of the base's factors; for ONNX graphs PEFT's. (ONNX runtimes of others load
adapter.onnx_adapter, which holds L and R too, and so has no scale of its own.)"""


@dataclass(frozen=True)
class BaseId:
    """Which packed model an adapter belongs to: its name, and a digest of its files with weights.
    The name is for people; the digest decides."""

    name: str
    digest: str

    @staticmethod
    def of(name: str, files: Mapping[str, str]) -> BaseId:
        """From file name → sha256 of the files with weights."""
        text = "\n".join(f"{file} {sha256}" for file, sha256 in sorted(files.items()))
        return BaseId(name, hashlib.sha256(text.encode()).hexdigest())

    @staticmethod
    def of_manifest(manifest: Mapping[str, Any]) -> BaseId:
        """Of an output folder, by its manifest."""
        return BaseId.of(str(manifest["model"]["model"]), weight_files(manifest))


def weight_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name → sha256 of an output folder's files with weights."""
    return only_weights({name: entry["sha256"] for name, entry in manifest["files"].items()})


def only_weights(files: Mapping[str, str]) -> dict[str, str]:
    """Those of an output folder's files, name → sha256, that have the model's weights."""
    return {
        name: sha256
        for name, sha256 in files.items()
        if (name.endswith(WEIGHTS) or ".onnx_data" in name) and not name.startswith(f"{FOLDER}/")
    }


class _Base(Untrusted):
    """The packed model that an adapter belongs to."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class About(Untrusted):
    """The fields of adapter.json. `ranks` are of ΔW by weight. `lora_alpha` is the alpha that it
    was trained with (in the files, alpha / rank is multiplied into lora_B); `about` says how."""

    edgepack: str
    base: _Base
    mode: str = Field(max_length=100)
    ranks: Annotated[dict[str, Count], Field(max_length=100_000)]
    lora_alpha: float | None = None
    files: Annotated[dict[FileName, File], Field(max_length=1000)]
    about: dict[str, Any] = Field(default_factory=dict)

    @property
    def belongs_to(self) -> BaseId:
        """The base that it was trained on."""
        return BaseId(self.base.name, self.base.digest)

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(self.ranks.values(), default=0)


@dataclass(frozen=True)
class Found:
    """An adapter of an output folder; `problem` says why it cannot be used, if so."""

    name: str
    folder: Path
    about: About | None
    problem: str | None = None


def check_name(name: str) -> str:
    """The name itself, if an adapter may have it."""
    if not NAME.fullmatch(name):
        raise EdgepackError(
            f"{quote(name)} is no name for an adapter",
            hint="up to 64 letters, digits, dots, dashes and underscores, such as my-notes",
        )
    return name


def place(folder: Path, name: str) -> Path:
    """Where the adapter of that name lies, or will lie."""
    return folder / FOLDER / check_name(name)


def find(folder: Path, name: str) -> Path:
    """The folder of an adapter that exists."""
    path = place(folder, name)
    if path.is_dir():
        return path
    known = ", ".join(found.name for found in listed(folder)) or "it has none"
    raise EdgepackError(
        f"{shorten(str(folder), 120)}: has no adapter {quote(name)}",
        hint=f"its adapters: {known}",
    )


def listed(folder: Path) -> list[Found]:
    """All adapters of an output folder by name, unusable ones included; files are not read."""
    return listed_for(folder, BaseId.of_manifest(Artifact.read(folder).manifest))


def listed_for(folder: Path, base: BaseId) -> list[Found]:
    """The same of any folder that has adapters, beside the base that they should belong to."""
    found = []
    places = (folder / FOLDER).iterdir() if (folder / FOLDER).is_dir() else ()
    for path in sorted(places):
        if not path.is_dir() or not NAME.fullmatch(path.name):
            continue
        try:
            about = read_about(path)
        except EdgepackError as error:
            found.append(Found(path.name, path, None, error.message))
            continue
        fits = about.base.digest == base.digest
        problem = None if fits else f"belongs to another base, {shorten(about.base.name, 80)}"
        found.append(Found(path.name, path, about, problem))
    return found


def read_about(folder: Path) -> About:
    """An adapter's description; its files are not read."""
    path = folder / ABOUT
    where = shorten(str(path), 120)
    try:
        content = read_json(path, place=where)
    except FileNotFoundError:
        raise EdgepackError(
            f"{shorten(str(folder), 120)}: is no adapter of edgepack (no {ABOUT})",
            hint="edgepack finetune makes one",
        ) from None
    except OSError as error:
        raise EdgepackError(
            f"{where}: cannot be read ({error.strerror})", hint=NOT_OPENED
        ) from None
    return validate(About, content, where, hint="copy the adapter again")


def usable(found: Found, target: str, *, factors: bool = True) -> Path:
    """The file of an adapter that a runtime loads (see `Model.adapters`), once all its files were
    compared with adapter.json; one with a problem is refused. `factors`: L and R are loaded."""
    if found.problem or found.about is None:
        raise EdgepackError(
            f"the adapter {found.name}: {found.problem}",
            hint="train it again on this folder's files, or use it with those it was made for",
        )
    check_files(found.folder, found.about)
    wanted = [PEFT] if target == "onnx" else [TUNED, FILE] if factors else [FILE]
    names = [name for name in wanted if name in found.about.files]
    if not names:
        raise EdgepackError(
            f"the adapter {found.name} has no {wanted[-1]}, which is what {target} folders need",
            hint="train it again on this folder",
        )
    return found.folder / names[0]


def check_files(folder: Path, about: About) -> None:
    """Refuse an adapter whose files are not those that were written."""
    for name, known in about.files.items():
        path = folder / name
        if not path.is_file() or digest(path) != known.model_dump():
            what = "is not the file that it describes" if path.exists() else "is missing"
            raise EdgepackError(
                f"{shorten(str(folder), 120)}/{ABOUT}: {name} {what}",
                hint="copy the adapter again, or train it again",
            )


def write_about(folder: Path, about: Mapping[str, Any], files: Mapping[str, Path]) -> Path:
    """Write adapter.json about `files` (name in the folder → path); it is written last, so that an
    adapter without it is not whole."""
    entries = {name: digest(path) for name, path in sorted(files.items())}
    content = {"edgepack": version("edgepack"), **about, "files": entries}
    About.model_validate(content)
    with atomic(folder / ABOUT) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return folder / ABOUT
