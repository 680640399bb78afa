"""The files of a folder that hold its weights, and the position of each weight in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.config import Index
from edgepack.checkpoint.passed_over import BUFFERS
from edgepack.checkpoint.source_files import SourceFiles, refuse_pointer
from edgepack.core.untrusted import shorten, validate
from edgepack.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

READABLE = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
CODES = {**FLOAT8, "F8_E8M0": torch.float8_e8m0fnu, "U8": torch.uint8}
"""Types of codes and scales, which are numbers only together (`scaled`)."""
LANGUAGE_MODEL = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
"""Prefixes of the language model's tensors in a multimodal repository → those of it alone."""
OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
"""Weights that are not read: most are pickles, which can run code."""


@dataclass(frozen=True)
class Place:
    """The position of a tensor: `start` and `nbytes` in the file `path`."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    nbytes: int

    def rows(self, index: int, count: int) -> Place:
        """Part `index` of `count` with equally many rows."""
        if count == 1:
            return self
        shape, size = (self.shape[0] // count, *self.shape[1:]), self.nbytes // count
        return replace(self, shape=shape, start=self.start + index * size, nbytes=size)

    def read(self, files: SourceFiles) -> Tensor:
        """The tensor as stored."""
        data = files.read(self.path, self.start, self.nbytes)
        return data.view((READABLE | CODES)[self.dtype]).reshape(self.shape)

    @property
    def kind(self) -> str:
        """The type of what `read` gives."""
        return self.dtype


def weight_files(folder: Path, files: SourceFiles, place: str) -> list[Path]:
    """The files that transformers would load: ``model.safetensors`` before any index. An invalid
    index is refused even then, because it shows that somebody has changed the folder."""
    index = _read_index(folder, files, place) if (folder / INDEX).is_file() else None
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if index is None:
        raise _no_weights(folder, place)
    paths = [folder / name for name in sorted(set(index.weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"{place}: {shorten(path.name, 80)} is missing",
                hint="complete the download; the index names this file",
            )
    return paths


def missing(folder: Path) -> list[str]:
    """Files that the index names and the folder lacks; a download does not fetch weights whose name
    is not ``model*``."""
    if (folder / SINGLE).exists() or not (folder / INDEX).is_file():
        return []
    index = _read_index(folder, SourceFiles(), folder.name)
    return [name for name in sorted(set(index.weight_map.values())) if not (folder / name).exists()]


def unused_weights(folder: Path, used: list[Path]) -> str | None:
    """A warning about a second set of weights in the folder, which is not read."""
    if used == [folder / SINGLE] and (folder / INDEX).is_file():
        return f"{SINGLE} is read and {INDEX} is not, as transformers does it"
    return None


def tensors(
    paths: list[Path],
    architecture: Architecture,
    files: SourceFiles,
    place: str,
    *,
    wrapped: bool = False,
    coded: bool = False,
) -> dict[str, Place]:
    """Every tensor by its Hugging Face name; of a multimodal repository (`wrapped`) those of the
    language model, types of codes only in a `coded` checkpoint."""
    found: dict[str, Place] = {}
    for path in paths:
        for stored, entry in header(path, files).items():
            inner = inside(stored, architecture, wrapped=wrapped)
            if not inner:
                continue
            name = full_name(inner, architecture)
            if name in found:
                raise CheckpointError(
                    f"{place}: {shorten(name, 80)} is there twice, in "
                    f"{shorten(found[name].path.name, 60)} and {shorten(path.name, 60)}",
                    hint="files of two models may be in one folder: keep one set",
                )
            if coded and entry.dtype in CODES:
                found[name] = entry  # with its scales, it is taken apart in `scaled`
                continue
            if not name.endswith(BUFFERS):
                refuse_unreadable(path, name, entry)
            found |= _parts(name, entry, architecture)
    return found


def left_out(paths: list[Path], architecture: Architecture, files: SourceFiles) -> str:
    """A warning about the tensors of a multimodal repository that are not of its language model."""
    names = [name for path in paths for name in header(path, files)]
    others = [name for name in names if not inside(name, architecture, wrapped=True)]
    parts = {".".join(name.split(".")[:2]) for name in others}
    if not others:
        return ""
    return f"{len(others)} tensors are no part of the language model and are left out: " + shorten(
        ", ".join(sorted(parts)), 160
    )


def inside(stored: str, architecture: Architecture, *, wrapped: bool) -> str:
    """The name in the language model of a tensor of a multimodal repository; "" if it is of no
    part of the language model."""
    inner = of_language_model(stored)
    known = inner != stored or stored in architecture.outside.values()
    return stored if not wrapped else inner if known else ""


def of_language_model(name: str) -> str:
    """A name in a multimodal model as the language model alone has it."""
    for prefix, inner in LANGUAGE_MODEL.items():
        if name.startswith(prefix):
            return inner + name.removeprefix(prefix)
    return name


def names_in(name: str, shape: tuple[int, ...], architecture: Architecture) -> list[str]:
    """The weights whose rows a stored tensor has, equally many of each: mostly itself."""
    inside_block = name.removeprefix(architecture.layers + ".").partition(".")[2]
    roles = architecture.stored.get(inside_block)
    if roles is None or shape[0] % len(roles):
        return [name]
    prefix = name.removesuffix(inside_block)
    return [prefix + architecture.block[role] for role in roles]


def _parts(name: str, entry: Place, architecture: Architecture) -> dict[str, Place]:
    """The weights of a stored tensor: itself, or those whose rows it has."""
    names = names_in(name, entry.shape or (1,), architecture)
    return {one: entry.rows(i, len(names)) for i, one in enumerate(names)}


def full_name(stored: str, architecture: Architecture) -> str:
    """The name with or without the prefix ``model.``, as in transformers. Checkpoints of the inner
    model lack the prefix, and others have it on the head as well."""
    prefix = architecture.layers.partition(".")[0] + "."
    names = [*architecture.outside.values(), architecture.layers]
    inner = {n.removeprefix(prefix).partition(".")[0] for n in names if n.startswith(prefix)}
    outer = {name.partition(".")[0] for name in names if not name.startswith(prefix)}
    if stored.partition(".")[0] in inner:
        return prefix + stored
    bare = stored.removeprefix(prefix)
    return bare if bare.partition(".")[0] in outer else stored


def header(path: Path, files: SourceFiles) -> dict[str, Place]:
    """The tensors in the header of a safetensors file. Its offsets are checked here, the rest by
    the library."""
    with files.open(path) as file:
        beginning = file.read(128)
        refuse_pointer(path, beginning)
        try:
            with safe_open(path, framework="pt") as checked:
                names = set(checked.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{shorten(path.name, 80)}: truncated or corrupted "
                f"({shorten(str(error).partition(chr(10))[0], 100)})",
                hint="the download may be incomplete: delete the file and fetch it again",
            ) from error
        length = int.from_bytes(beginning[:8], "little")
        file.seek(8)
        content = json.loads(file.read(length))
    entries: Mapping[str, dict[str, list[int]]] = content
    begin = 8 + length
    return {name: _place(path, entries[name], begin) for name in sorted(names)}


def _place(path: Path, entry: Mapping[str, list[int]], begin: int) -> Place:
    start, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), str(entry["dtype"])
    return Place(path, shape, dtype, begin + start, end - start)


def _read_index(folder: Path, files: SourceFiles, place: str) -> Index:
    content = files.read_json(folder / INDEX)
    hint = "take the index published with the model, or remove it beside model.safetensors"
    return validate(Index, content, f"{place}: {INDEX}", CheckpointError, hint=hint)


def refuse_unreadable(path: Path, name: str, entry: Place) -> None:
    """Refuse a tensor of a type that holds no plain numbers."""
    if entry.dtype not in READABLE:
        raise CheckpointError(
            f"{shorten(path.name, 80)}: {shorten(name, 80)} is stored as {entry.dtype}",
            hint="edgepack reads " + ", ".join(READABLE) + "; name an unquantized checkpoint",
        )


def _no_weights(folder: Path, place: str) -> CheckpointError:
    others = sorted(path.name for pattern in OTHERS for path in folder.glob(pattern))
    if others:
        return CheckpointError(
            f"{place}: {shorten(others[0], 80)} is no safetensors file, and {SINGLE} is missing",
            hint="load the model with transformers and save it again: save_pretrained writes "
            "safetensors",
        )
    strange = sorted(path.name for path in folder.glob("*.safetensors"))
    if strange:
        return CheckpointError(
            f"{place}: {SINGLE} is missing, and no {INDEX} names {shorten(strange[0], 80)}",
            hint=f"complete the download, or call the file {SINGLE} if it is the whole model",
        )
    return CheckpointError(
        f"{place}: {SINGLE} is missing",
        hint="complete the download; other kinds of weights are not read, only safetensors are",
    )
