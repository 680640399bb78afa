"""A PEFT adapter by name: a folder, or a repository of the hub with an optional ``@revision``."""

from __future__ import annotations

from pathlib import Path

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import hub
from edgepack.checkpoint.folder import TOKENIZER
from edgepack.checkpoint.lora import LoraAdapter
from edgepack.checkpoint.peft import CONFIG, WEIGHTS
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError

FILES = (CONFIG, WEIGHTS, *TOKENIZER, "README.md")
"""Files of a repository that are downloaded."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_adapter(name: str, base: Path, architecture: Architecture | None = None) -> LoraAdapter:
    """The adapter. A relative path starts at `base`; `architecture` is that of its model."""
    path = base / Path(name).expanduser()
    if _exists(path):
        if not is_adapter(path):
            raise CheckpointError(
                f"{shorten(name, 100)}: is no PEFT adapter (no {CONFIG})",
                hint="an adapter is a folder with adapter_config.json and "
                "adapter_model.safetensors; in a merge it follows a plus sign: model+adapter",
            )
        return LoraAdapter(path, shorten(path.resolve().name, 80), None, architecture)
    if not hub.ID.fullmatch(name):
        raise CheckpointError(
            f"{shorten(name, 100)}: there is no such adapter",
            hint="an adapter is a folder, or a Hub id with an optional @revision",
        )
    folder = hub.snapshot(name, FILES)
    if not is_adapter(folder):
        raise CheckpointError(
            f"{shorten(name, 100)}: is no PEFT adapter (no {CONFIG})", hint="name another adapter"
        )
    return LoraAdapter(folder, name, folder.name, architecture)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer that was saved with an adapter; empty if there is none. A chat
    template alone is no tokenizer."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return []
    matched = [path for pattern in TOKENIZER for path in folder.glob(pattern)]
    return sorted({path for path in matched if path.is_file()})


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long
        return False
