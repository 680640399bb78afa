"""What a manifest says of the weights, against what the files hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat
from edgepack.output import vocabulary
from edgepack.planning.formats import Given
from edgepack.planning.plan import Plan
from edgepack.planning.target import get
from edgepack.recipe.sections import Recipe
from edgepack.verify.checks import Skipped, refuse
from edgepack.verify.safetensors import tensors
from edgepack.verify.subject import Subject


def formats(subject: Subject) -> str:
    """Formats of Q, L and R, and the rank, of every matrix."""
    known, found = subject.manifest["weights"], subject.formats
    refuse(_otherwise(known, found))
    ranks = sorted({fmt.rank for fmt in found.values() if fmt.rank})
    types = ", ".join(sorted({fmt.Q for fmt in found.values()}))
    of_rank = f", rank {' and '.join(map(str, ranks))}" if ranks else ""
    return f"{len(found)} matrices: {types}{of_rank}"


def _otherwise(known: Mapping[str, Any], found: Mapping[str, WeightFormat]) -> Iterator[str]:
    for name in sorted({*known, *found}):
        if name not in found:
            yield f"{name}: the manifest has it, the files do not"
        elif name not in known:
            yield f"{name}: the files have it, the manifest does not"
        else:
            parts, held = known[name]["formats"], found[name]
            stated = WeightFormat(parts["Q"], known[name]["rank"], parts.get("L"), parts.get("R"))
            if stated != held:
                yield f"{name} is {_text(held)}, the manifest says {_text(stated)}"


def _text(fmt: WeightFormat) -> str:
    if not fmt.rank:
        return fmt.Q
    return f"{fmt.Q} + rank {fmt.rank} in {fmt.L} and {fmt.R}"


def sizes(subject: Subject) -> str:
    """Bytes by part of the model, and bits per weight, computed from the files."""
    manifest = subject.manifest
    stated, bits = dict(manifest["bytes"]), manifest["bits_per_weight"]
    if manifest["merge"]:  # of any model, block by block or not
        found = sum(sum(tensors(p).values()) for p in subject.listed(".safetensors"))
        total = sum(stated.values())
        refuse([f"the files have {found} bytes, the manifest says {total}"] * (found != total))
        return f"{found:,} bytes"
    plan = _plan(subject.checkpoint, subject.kind, subject.formats)
    parts = plan.bytes_by_part()
    refuse(
        f"{part}: the files have {parts.get(part, 0)} bytes, the manifest says {stated.get(part)}"
        for part in dict.fromkeys((*parts, *stated))
        if parts.get(part) != stated.get(part)
    )
    text = f"{sum(parts.values()):,} bytes"
    compress = manifest["recipe"].get("compress") or {}
    if compress.get("pad_width"):
        return f"{text}; bits are those per weight without padding"
    for key, blocks_only in (("blocks", True), ("all", False)):
        here = plan.bits_per_weight(blocks_only=blocks_only)
        other = not math.isclose(here, bits[key], rel_tol=1e-9)
        refuse([f"{here:.4f} bits per weight ({key}), the manifest says {bits[key]:.4f}"] * other)
    return f"{text}, {bits['all']:.3f} bits per weight"


def _plan(model: Checkpoint, target: str, found: Mapping[str, WeightFormat]) -> Plan:
    """A plan of the files as they are, whose sums are those of a build."""
    return Plan(Recipe(), get(target), Path(), model, model, chosen=Given(dict(found)))


def requires(subject: Subject) -> str:
    """The llama.cpp that the manifest asks for is the one that the types need."""
    needs = get(subject.kind).requires(subject.checkpoint, subject.formats)
    stated = subject.manifest["requires"]
    refuse([f"the types need {needs}, the manifest says {stated}"] * (stated != needs))
    return needs or "any version that edgepack runs"


def tokenizer(subject: Subject) -> str:
    """The vocabulary and the chat template are those that were noted."""
    known = subject.manifest.get("tokenizer")
    found = vocabulary.describe(subject.folder, subject.described.files)
    if known is None or found is None:
        raise Skipped("none was noted")
    names = {"tokens": "the number of tokens", "vocabulary": "the vocabulary"}
    refuse(
        f"{names.get(key, 'the chat template')} is not what the manifest says"
        for key in found
        if found[key] != known.get(key)
    )
    has = "and a chat template" if found["chat_template"] else "no chat template"
    return f"{found['tokens']:,} tokens, {has}"
