"""A packed model as a page in a browser takes it: files in pieces, tokenizer, training graph."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.adapters.base import GGUF, PackedBase
from edgepack.checkpoint import Checkpoint, gguf_rows, special, templates
from edgepack.core import adapters as kept
from edgepack.core.progress import Steps
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.finetune.graph.base import open_base
from edgepack.finetune.graph.folder import GRAPH, INITIAL, read_about, write_folder
from edgepack.finetune.graph.options import Options

PIECE = 4 << 20
"""Bytes of a piece; a browser keeps a file piece by piece."""
SUFFIX = {"R": "lora_a", "L": "lora_b"}


@dataclass(frozen=True)
class Training:
    """How models are trained in the page: a new adapter of `rank`, examples of `length` tokens."""

    rank: int = 8
    length: int = 64


@dataclass
class Written:
    """The entry of models.json, and what a person should know of it."""

    entry: dict[str, Any]
    remarks: list[str]


def identifier(folder: Path, known: Iterable[str]) -> str:
    """A name for the model in addresses, unlike those known."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-")[:40] or "model"
    taken, number, found = set(known), 1, stem
    while found in taken or found.startswith("own-"):
        number += 1
        found = f"model-{stem}-{number}"
    return found


def write_model(folder: Path, root: Path, place: str, training: Training | None) -> Steps[Written]:
    """Write what a page needs of an output folder into ``root/place``; paths in the entry are
    relative to `root`."""
    base = PackedBase.open(folder)
    if base.target != GGUF:
        raise EdgepackError(
            f"{shorten(str(folder), 120)}: is for {base.target}, and the page runs GGUF",
            hint="build the recipe with --target gguf",
        )
    out = root / place
    out.mkdir(parents=True)
    checkpoint, identity = base.checkpoint, base.identity
    text = out / "text.json"
    text.write_text(json.dumps(text_of(checkpoint), ensure_ascii=False), encoding="utf-8")
    sources = {"model": base.file, "factors": base.factors}
    entry: dict[str, Any] = {
        "id": out.name,
        "name": folder.resolve().name,
        "architecture": checkpoint.architecture.gguf,
        "base_name": identity.name,
        "digest": identity.digest,
        "text": f"{place}/text.json",
        "files": {key: path and _copied(path, root, place) for key, path in sources.items()},
        "adapters": [_adapter(found, root, place) for found in _usable(folder)],
        "training": None,
    }
    remarks: list[str] = []
    if training:
        try:
            entry["training"] = yield from _training(folder, root, f"{place}/training", training)
        except EdgepackError as error:
            shutil.rmtree(root / place / "training", ignore_errors=True)
            remarks.append(f"{entry['name']} chats, but does not learn: {error.message}")
    return Written(entry, remarks)


def text_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that turns messages into tokens: the chat template with its names, the ids that
    begin and end a text, control tokens, and the tokenizer as Hugging Face's tokenizer.json."""
    tokenizer = checkpoint.tokenizer
    added = tokenizer.added_tokens_decoder.values()
    before, _ = special.wrapping(tokenizer)
    return {
        "template": templates.choose(tokenizer.chat_template),
        "names": special.names_of(tokenizer),
        "bos": before[:1],
        "end": list(special.ends(tokenizer, checkpoint.generation_config()))[:1],
        "control": sorted(token.content for token in added if token.special),
        "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()),
        "tokenizer_config": {"clean_up_tokenization_spaces": False},
    }


def pieces_of(path: Path) -> dict[str, Any]:
    """Size and digests of a file."""
    whole, pieces = hashlib.sha256(), []
    with path.open("rb") as file:
        while part := file.read(PIECE):
            whole.update(part)
            pieces.append(hashlib.sha256(part).hexdigest())
    return {
        "bytes": path.stat().st_size,
        "sha256": whole.hexdigest(),
        "piece_bytes": PIECE,
        "pieces": pieces,
    }


def _copied(source: Path, root: Path, place: str, name: str = "") -> dict[str, Any]:
    path = root / place / (name or source.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    return {"path": f"{place}/{name or source.name}", **pieces_of(path)}


def _usable(folder: Path) -> list[kept.Found]:
    """Adapters that llama.cpp puts on top of base and factors."""
    return [
        found
        for found in kept.listed(folder)
        if found.about and not found.problem and kept.FILE in found.about.files
    ]


def _adapter(found: kept.Found, root: Path, place: str) -> dict[str, Any]:
    assert found.about is not None  # `_usable` says so
    path = found.folder / kept.FILE
    return {
        "name": found.name,
        "digest": found.about.base.digest,
        "created": path.stat().st_mtime,
        "examples": None,
        "file": _copied(path, root, f"{place}/adapters", f"{found.name}.gguf"),
    }


def _training(folder: Path, root: Path, place: str, training: Training) -> Steps[dict[str, Any]]:
    """The graph of a training step, and where the trained matrices go in a GGUF adapter."""
    base = open_base(folder)
    options = Options("stack", training.rank, length=training.length)
    out = root / place
    out.mkdir()
    yield from write_folder(out, base, options)
    about = read_about(out)
    checkpoint = base.checkpoint
    name = checkpoint.gguf_metadata().get("general.name")
    orders = _orders(checkpoint)
    described = {
        "mode": about.mode,
        "rank": training.rank,
        "length": training.length,
        "batch": about.batch,
        "size": about.size,
        "name": name[0] if name else "",
        "data": about.data,
        "replay": None,
        "rows": orders,
        "parameters": [
            {
                "tensor": _tensor(checkpoint, parameter.weight, parameter.part),
                "shape": list(parameter.shape),
                "offset": parameter.offset,
                "rows": _role(checkpoint, parameter.weight) if parameter.part == "L" else None,
            }
            for parameter in about.matrices()
        ],
        "files": {
            "graph": {"path": f"{place}/{GRAPH}", **pieces_of(out / GRAPH)},
            "theta": {"path": f"{place}/{INITIAL}", **pieces_of(out / INITIAL)},
            **{path: {"path": f"{place}/{path}", **pieces_of(out / path)} for path in about.data},
        },
    }
    for path in out.iterdir():
        if path.suffix in (".html", ".json"):
            path.unlink()
    return described


def _role(checkpoint: Checkpoint, weight: str) -> str:
    return checkpoint.specs[weight].role


def _tensor(checkpoint: Checkpoint, weight: str, part: str) -> str:
    spec = checkpoint.specs[weight]
    return f"{checkpoint.architecture.gguf_name(spec.role, spec.block)}.{SUFFIX[part]}"


def _orders(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Role → rows of an L in the order of the file, for roles that llama.cpp stores otherwise."""
    roles = {spec.role for spec in checkpoint.specs.values()}
    family, dimensions = checkpoint.architecture, checkpoint.dimensions
    found = {role: gguf_rows(family, dimensions, role) for role in sorted(roles)}
    return {role: order.tolist() for role, order in found.items() if order is not None}
