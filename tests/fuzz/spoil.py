"""Ways to spoil a file of a case, by its kind."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.binary import Gguf, spoil_gguf
from tests.fuzz.case import INDEX, MANIFEST, header_of
from tests.fuzz.mutators import spoil_bytes, spoil_json, spoil_template, spoil_yaml


def chance_of(reader: str, number: int) -> random.Random:
    """The chance of an input: the same for ever."""
    return random.Random(f"{reader} {number}")


Make = Callable[[bytes, random.Random], bytes]


def spoil_file(reader: str, files: dict[str, Make], folder: Path, number: int) -> list[str]:
    """Spoil one of `files`, which are whole in the folder."""
    chance = chance_of(reader, number)
    pattern = chance.choice(list(files))
    name = pattern
    if "*" in pattern:
        name = str(next(folder.glob(pattern)).relative_to(folder))
    source = folder / ("index.json" if name == INDEX else name)
    (folder / name).write_bytes(files[pattern](source.read_bytes(), chance))
    out = Path(name).parts[0]
    manifest = f"{out}/{MANIFEST}"
    if not out.startswith("out-") or name == manifest or chance.random() < 0.03:
        return [name]
    _sign(folder / manifest, str((folder / name).relative_to(folder / out)), folder / name)
    return [name, manifest]


def _sign(manifest: Path, name: str, file: Path) -> None:
    """Let the manifest say what the spoiled file is: who means harm does so as well, and a digest
    that is wrong would be all that a reader looks at."""
    content = json.loads(manifest.read_bytes())
    data = file.read_bytes()
    known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if name in content["files"]:
        content["files"][name] = known
    manifest.write_text(json.dumps(content))


def json_file(data: bytes, chance: random.Random) -> bytes:
    """Any JSON file."""
    return spoil_json(_parsed(data), chance)


@cache
def _parsed(data: bytes) -> Any:
    return json.loads(data)


def yaml_file(data: bytes, chance: random.Random) -> bytes:
    """A recipe."""
    return spoil_yaml(_documents(data)[0], chance)


def yaml_documents(data: bytes, chance: random.Random) -> bytes:
    """YAML of several documents, in one of which something is changed."""
    documents = [json.dumps(document).encode() for document in _documents(data)]
    at = chance.randrange(len(documents))
    kind = chance.random()
    if kind < 0.05:
        del documents[at]
    elif kind < 0.1:
        documents.append(documents[at])
    elif kind < 0.2:
        return spoil_bytes(data, chance)
    else:
        documents[at] = spoil_yaml(_parsed(documents[at]), chance)
    return b"\n---\n".join(documents)


@cache
def _documents(data: bytes) -> list[Any]:
    return list(yaml.safe_load_all(data))


def safetensors_file(data: bytes, chance: random.Random) -> bytes:
    """Its header as JSON, or bytes of it, or of the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    kind = chance.random()
    if kind < 0.4:
        return spoil_bytes(data, chance, 8 + length)
    if kind < 0.5:
        return spoil_bytes(data, chance)
    header = spoil_json(header_of(data), chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def gguf_file(data: bytes, chance: random.Random) -> bytes:
    """One key or tensor."""
    return spoil_gguf(_gguf(data), chance)


@cache
def _gguf(data: bytes) -> Gguf:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        return Gguf.read(Path(file.name))


def gguf_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes of the header, mostly."""
    return spoil_bytes(data, chance, chance.choice((64, 2_000, 20_000, None)))


def jsonl_file(data: bytes, chance: random.Random) -> bytes:
    """One row of many."""
    rows = data.splitlines()
    at = chance.randrange(len(rows))
    rows[at] = spoil_json(_parsed(rows[at]), chance)
    found = b"\n".join(rows)
    return spoil_bytes(found, chance) if chance.random() < 0.05 else found


def template_file(data: bytes, chance: random.Random) -> bytes:
    """A chat template."""
    return spoil_template(data.decode(), chance).encode("utf-8", "surrogatepass")
