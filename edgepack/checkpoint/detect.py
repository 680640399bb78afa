"""Detection of a folder's family, and refusal of folders that edgepack cannot read."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import quantization
from edgepack.core import plugins
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError

BARE = ("Model", "ForCausalLM")
"""Suffixes of the classes whose weights are those of a language model."""


def architecture(config: Mapping[str, Any], place: str) -> Architecture:
    """The family that config.json names, by ``model_type`` as in transformers."""
    name, known = config.get("model_type"), plugins.names("architectures")
    quantization.block_of(config, place)
    if not isinstance(name, str) or name not in known:
        raise _unknown(name, known, place)
    found: Architecture = plugins.find("architectures", name)
    _refuse_other_class(config, found, place)
    unread = ("transformers_weights", *(() if found.sized_kinds else ("per_layer_config",)))
    for key in unread:
        if config.get(key) is not None:
            raise CheckpointError(
                f"{place}: config.json: {key} is not supported",
                hint="edgepack reads model.safetensors, and blocks that are all alike",
            )
    return found


def _unknown(name: object, known: Collection[str], place: str) -> CheckpointError:
    """The refusal of a family, with those whose names are like its own first."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) if isinstance(name, str) else []
    return CheckpointError(
        f"{place}: model_type {quote(name)} is not supported",
        hint=(f"nearest: {', '.join(near)}; " if near else "") + f"supported: {', '.join(known)}",
    )


def refuse_other_settings(config: Mapping[str, Any], family: Architecture, place: str) -> None:
    """Refuse settings that have another value than the family is computed with."""
    for key, wanted in family.required.items():
        given = config.get(key, wanted)
        if type(given) is not type(wanted) or given != wanted:
            raise CheckpointError(
                f"{place}: {key} {quote(given)} is not supported",
                hint=f"{family.name} models are computed with {key} {wanted!r}",
            )


def _refuse_other_class(config: Mapping[str, Any], family: Architecture, place: str) -> None:
    """Refuse a class of another family, or one whose code comes with the model: it computes
    something else than the family."""
    stem = family.class_name.removesuffix("ForCausalLM")
    allowed = {stem + ending for ending in BARE}
    classes, own = config.get("architectures"), config.get("auto_map")
    for key, value, kind in (("architectures", classes, list), ("auto_map", own, dict)):
        if value is not None and not isinstance(value, kind):
            raise CheckpointError(
                f"{place}: config.json: {key} should be a {kind.__name__}, not {quote(value)}",
                hint="take the config.json published with the model",
            )
    named = (own or {}).get("AutoModelForCausalLM")
    if isinstance(named, str) and named.rpartition(".")[2] not in allowed:
        raise CheckpointError(
            f"{place}: the model is computed by code of its own ({shorten(named, 80)})",
            hint="edgepack runs no code that comes with a model; name one of transformers' own "
            "classes",
        )
    if classes and not any(isinstance(name, str) and name in allowed for name in classes):
        raise CheckpointError(
            f"{place}: architectures says {quote(classes[0])}, model_type {family.name!r}",
            hint=f"edgepack packs language models: {family.class_name}",
        )


def no_config(folder: Path) -> str:
    """A hint for a folder without config.json."""
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if files:
        return f"to start from a GGUF file, name it: {shorten(files[0], 100)}"
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: write model: {base: …, adapter: …} in the recipe"
    return "a model folder has config.json, *.safetensors and tokenizer.json"
