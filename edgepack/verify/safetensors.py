"""The structure of checkpoints: safetensors files and their index."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from edgepack.checkpoint.save import INDEX
from edgepack.core.untrusted import read_json
from edgepack.errors import EdgepackError
from edgepack.verify.checks import refuse
from edgepack.verify.subject import Subject

BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64}
BITS |= {"I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}


def structure(subject: Subject) -> str:
    """Headers, and that the index names every tensor and the file that has it."""
    held = {path.name: tensors(path) for path in subject.listed(".safetensors")}
    count = sum(map(len, held.values()))
    refuse([] if held else ["there is no file of weights"])
    refuse(_index(subject.folder / INDEX, held))
    return f"{count} tensors in {len(held)} file{'s' if len(held) > 1 else ''}"


def tensors(path: Path) -> dict[str, int]:
    """Bytes of every tensor of a file, whose header is checked by safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: math.prod(one.get_shape()) * BITS.get(one.get_dtype(), 8) // 8
                for name, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        what = str(error).splitlines()[0]
        raise EdgepackError(f"{path.name} is no safetensors file ({what})") from None


def _index(path: Path, held: dict[str, dict[str, int]]) -> Iterator[str]:
    if not path.is_file():
        return
    try:
        listed = dict(read_json(path)["weight_map"])
    except (LookupError, TypeError, ValueError, json.JSONDecodeError):
        yield f"{path.name} is no index"
        return
    found = {name: file for file, names in held.items() for name in names}
    for name in sorted({*listed, *found}):
        if listed.get(name) != found.get(name):
            where, is_in = listed.get(name, "no file"), found.get(name, "no file")
            yield f"{path.name}: {name} is in {is_in}, not in {where}"
