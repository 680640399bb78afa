"""Tensors of a checkpoint that are no weights of its language model, as transformers passes over
them; and the two matrices of a tied model, which may be stored in three ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from edgepack.architectures.base import Architecture
from edgepack.core.untrusted import whole_number

BUFFERS = (
    ".rotary_emb.inv_freq",
    ".rotary_emb.original_inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    ".masked_bias",
    ".position_ids",
)
"""Endings of buffers that follow from the configuration; old versions of transformers saved
them."""
TOLD = {
    "vision or audio": (
        "visual.",
        "vision_tower.",
        "vision_model.",
        "vision_embed_tokens.",
        "multi_modal_projector.",
        "audio_tower.",
        "embed_vision.",
        "embed_audio.",
    ),
    "prediction of several tokens": ("mtp.",),
}
"""Other parts of a model → how their tensors' names begin, behind ``model.`` perhaps."""
BEYOND = "blocks beyond num_hidden_layers"

Entry = TypeVar("Entry")


def split(
    found: Mapping[str, Entry], architecture: Architecture, blocks: int
) -> tuple[dict[str, Entry], Counter[str]]:
    """The weights of the language model, and how many tensors each part has that is left out."""
    kept: dict[str, Entry] = {}
    left_out: Counter[str] = Counter()
    for name, entry in found.items():
        part = _part(name, architecture, blocks)
        if part is None:
            kept[name] = entry
        elif part:
            left_out[part] += 1
    return kept, left_out


def _part(name: str, architecture: Architecture, blocks: int) -> str | None:
    """The part that a tensor is left out with, empty for a buffer; None for a weight."""
    if name.endswith(BUFFERS):
        return ""
    if part := part_of(name):
        return part
    number = name.removeprefix(f"{architecture.layers}.").partition(".")[0]
    index = whole_number(number) if name.startswith(f"{architecture.layers}.") else None
    return BEYOND if index is not None and index >= blocks else None


def part_of(name: str) -> str:
    """The part of a model beside its language model that a tensor is of; "" for another."""
    bare = name.removeprefix("model.")
    return next((part for part, starts in TOLD.items() if bare.startswith(starts)), "")


def told(left_out: Mapping[str, int]) -> tuple[str, ...]:
    """A warning about what is left out."""
    if not left_out:
        return ()
    parts = [f"{part} ({count} tensors)" for part, count in sorted(left_out.items())]
    return (f"left out: {', '.join(parts)}; the language model alone is read",)
