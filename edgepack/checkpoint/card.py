"""Name, licence, languages … of a model: from its card (README.md), else from its folder's name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import yaml

from edgepack.core.weights import WeightSpec

MAX_CARD = 256 << 10
"""Largest README.md that is read; the longest of the Hub's popular models has a tenth of it."""
MAX_TEXT = 10_000
"""Most characters of one entry; longer descriptions do not belong in the header of a GGUF."""

STORED = ("name", "license", "license_name", "license_link", "language", "tags", "base_model")
"""Entries whose loss is warned about; GGUF cannot store many others of a card."""


def describe(
    folder: Path, name: Path, specs: Collection[WeightSpec]
) -> tuple[gguf.Metadata, tuple[str, ...]]:
    """A GGUF's description of the model, and warnings about entries of the card that are lost."""
    card, warnings = read(folder)
    metadata, more = apply(card, name, specs)
    return metadata, (*warnings, *more)


def apply(
    card: dict[str, Any], name: Path, specs: Collection[WeightSpec]
) -> tuple[gguf.Metadata, tuple[str, ...]]:
    """A GGUF's description of a model with these entries in its card, and warnings."""
    warnings: tuple[str, ...] = ()
    numel = sum(spec.numel for spec in specs)
    metadata = _apply(card, name, numel)
    if metadata is None:  # gguf's heuristics fail at entries that they do not expect
        warnings = ("README.md: its description of the model cannot be stored in GGUF",)
        metadata = _apply({}, name, numel) or gguf.Metadata()
    metadata.name = metadata.name or _text(name.name) or "model"
    metadata.size_label = metadata.size_label or _size_label(specs)
    return metadata, warnings


def _size_label(specs: Collection[WeightSpec]) -> str:
    """The number of weights; with experts their number, and the weights if there were but one."""
    count = 1 + max((spec.expert for spec in specs if spec.expert is not None), default=-1)
    total = sum(spec.numel for spec in specs)
    of_experts = sum(spec.numel for spec in specs if spec.expert is not None)
    one = of_experts // count if count else 0
    label: str = gguf.size_label(total, total - of_experts, one, count)
    return label


def licence(folder: Path) -> str | None:
    """The licence that the card of a folder states; None without one. Where `license` is ``other``,
    the name is in `license_name`."""
    card, _ = read(folder)
    found = card.get("license")
    if found == "other":
        found = card.get("license_name") or found
    return ", ".join(found) if isinstance(found, list) else found


def with_header(header: Mapping[str, Any], text: str) -> str:
    """A card: entries as the hub reads them, then its text."""
    lines = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return f"---\n{lines}---\n\n{text}"


def _apply(card: dict[str, Any], name: Path, numel: int) -> gguf.Metadata | None:
    try:
        named = Path(_text(str(name)) or "model")
        metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, None, named, numel)
        metadata.name = metadata.name or named.name
        trial = gguf.GGUFWriter(None, "llama")
        replace(metadata, size_label="?").set_gguf_meta_model(trial)
        entries = trial.kv_data[0].values()
        if not all(_fits(entry.value) for entry in entries):
            return None
    except Exception:  # third-party code may raise anything at an unexpected card
        return None
    return metadata


def read(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The card's front matter, texts and lists of texts only."""
    path = folder / "README.md"
    try:
        if not path.is_file():
            return {}, ()
        if path.stat().st_size > MAX_CARD:
            return {}, (f"README.md: longer than {MAX_CARD >> 10} KB, so its header is not read",)
        card: Mapping[Any, Any] = gguf.Metadata.load_model_card(folder)
    except Exception:  # YAML errors of all kinds, bad UTF-8, unreadable files
        return {}, (
            "README.md: its YAML header cannot be read, so name and licence are not in the GGUF",
        )
    plain = {key: _plain(value) for key, value in card.items() if isinstance(key, str)}
    lost = [key for key in STORED if card.get(key) is not None and plain[key] is None]
    kept = {key: value for key, value in plain.items() if value is not None}
    return kept, tuple(f"README.md: {key} is no text, so it is not in the GGUF" for key in lost)


def _fits(value: Any) -> bool:
    """Whether a GGUF can hold the value."""
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int)


def _plain(value: Any) -> str | list[str] | None:
    """The value if it is a text or a list of texts, else None."""
    if isinstance(value, list):
        texts = [_text(item) for item in value]
        return [text for text in texts if text] or None
    return _text(value)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        return None
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TEXT else None
