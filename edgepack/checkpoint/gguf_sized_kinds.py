"""Kinds of blocks that differ in size, and shared keys and values, as keys of a GGUF (Gemma 4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gguf import GGUFWriter

from edgepack.architectures.base import (
    FULL,
    SHARED_SLIDING,
    SHARES_WITH,
    SLIDING,
    Architecture,
)
from edgepack.checkpoint.base import Dimensions
from edgepack.checkpoint.gguf_keys import HINT
from edgepack.checkpoint.sized_kinds import Kinds, maker_of
from edgepack.core.untrusted import quote
from edgepack.errors import CheckpointError

SLIDES = (SLIDING, SHARED_SLIDING)
"""Kinds with a window."""
WIDTHS, KV_HEADS = "feed_forward_length", "attention.head_count_kv"
LISTS = (WIDTHS, KV_HEADS)
"""Keys with a number for every block."""
PATTERN = "attention.sliding_window_pattern"
SHARED, PER_LAYER = "attention.shared_kv_layers", "embedding_length_per_layer_input"
SLIDING_SIZES = (
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
)
"""Keys for the width of a head in blocks with a window, all of which turns."""


def write(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
    """Add the keys that llama.cpp reads for such families alone."""
    if not family.sized_kinds:
        return
    shared = sum(kind in SHARES_WITH for kind in d.layer_types)
    writer.add_uint32(f"{family.gguf}.{SHARED}", shared)
    writer.add_uint32(f"{family.gguf}.{PER_LAYER}", d.hidden_size_per_layer_input)
    for key in SLIDING_SIZES:
        writer.add_uint32(f"{family.gguf}.{key}", d.kinds[SLIDING]["head_dim"])


def inner_widths(d: Dimensions) -> int | list[int]:
    """Inner widths of the blocks; one number if they are equal."""
    found = [d.block(i).intermediate_size for i in range(d.num_hidden_layers)]
    return found if len(set(found)) > 1 else d.intermediate_size


def assumed_otherwise(family: Architecture, d: Dimensions) -> Iterator[str]:
    """What llama.cpp would compute otherwise, in words that end "llama.cpp computes … only"."""
    if not family.sized_kinds:
        return
    if SLIDING not in d.layer_types:
        yield "with sliding_attention in some block"
    shared = [i for i, kind in enumerate(d.layer_types) if kind in SHARES_WITH]
    if any(maker_of(d.layer_types, i) != _assumed_maker(d, shared[0], i) for i in shared):
        yield "with sliding_attention, full_attention before the blocks that share keys and values"
    if (d.rope_scaling or {}).get("rope_type") != "proportional":
        yield "with proportional rotary positions in full_attention"


def _assumed_maker(d: Dimensions, first: int, index: int) -> int:
    """The block whose keys and values llama.cpp takes in block `index`; `first` is the first that
    shares them (``llama_model::create_memory``)."""
    return first - (2 if d.layer_types[index] in SLIDES else 1)


def uniform(fields: Mapping[str, Any], family: Architecture) -> Mapping[str, Any]:
    """The keys with one number in place of lists: that of the first block, of heads that of the
    first block without a window. `read` reads the lists."""
    if not family.sized_kinds:
        return fields
    found = dict(fields)
    pattern = fields.get(f"{family.gguf}.{PATTERN}")
    full = pattern.index(False) if isinstance(pattern, list) and False in pattern else 0
    for key, place in ((WIDTHS, 0), (KV_HEADS, full)):
        value = fields.get(f"{family.gguf}.{key}")
        if isinstance(value, list) and place < len(value):
            found[f"{family.gguf}.{key}"] = value[place]
    return found


def read(
    d: Dimensions,
    fields: Mapping[str, Any],
    tensors: Collection[str],
    family: Architecture,
    place: str,
) -> Dimensions:
    """`d`, whose blocks are sliding or full, with the kinds of blocks that the file has."""
    types = d.layer_types
    if not isinstance(fields.get(f"{family.gguf}.{PATTERN}"), list) or FULL not in types:
        raise _wrong(place, family, PATTERN, fields)
    shared = _number(fields, family, SHARED, place)
    widths = _per_block(fields, family, WIDTHS, d, place)
    heads = _per_block(fields, family, KV_HEADS, d, place)
    first = d.num_hidden_layers - shared
    whole = {widths[0]}, {widths[-1]}
    if first < 1 or (set(widths[:first]), set(widths[first:]) or whole[1]) != whole:
        raise _wrong(place, family, WIDTHS if first >= 1 else SHARED, fields)
    if widths[-1] not in (widths[0], 2 * widths[0]):
        raise _wrong(place, family, WIDTHS, fields)
    sizes = {FULL: {"head_dim": d.head_dim}, SLIDING: {"head_dim": d.head_dim}}
    for key in SLIDING_SIZES:
        width = _number(fields, family, key, place, d.head_dim)
        if not width or width != _number(fields, family, SLIDING_SIZES[0], place, d.head_dim):
            raise _wrong(place, family, key, fields)
        sizes[SLIDING]["head_dim"] = width
    for kind, size in sizes.items():
        counts = {count for count, own in zip(heads, types, strict=True) if own == kind}
        if len(counts) > 1:
            raise _wrong(place, family, KV_HEADS, fields)
        size["num_key_value_heads"] = counts.pop() if counts else d.num_key_value_heads
    keys_only = family.gguf_name("attn_v", types.index(FULL)) not in tensors
    per_layer = _number(fields, family, PER_LAYER, place)
    return Kinds(sizes, shared, widths[-1], keys_only).apply(
        replace(d, hidden_size_per_layer_input=per_layer), place
    )


def _number(
    fields: Mapping[str, Any], family: Architecture, key: str, place: str, default: int = 0
) -> int:
    value = fields.get(f"{family.gguf}.{key}", default)
    if type(value) is not int or not 0 <= value <= 1 << 24:
        raise _wrong(place, family, key, fields)
    return value


def _per_block(
    fields: Mapping[str, Any], family: Architecture, key: str, d: Dimensions, place: str
) -> list[int]:
    """A number for every block; the file may have one for all."""
    value = fields.get(f"{family.gguf}.{key}", d.num_key_value_heads)
    found = value if isinstance(value, list) else [value] * d.num_hidden_layers
    if len(found) != d.num_hidden_layers or not all(
        type(n) is int and 0 < n <= 1 << 24 for n in found
    ):
        raise _wrong(place, family, key, fields)
    return found


def _wrong(
    place: str, family: Architecture, key: str, fields: Mapping[str, Any]
) -> CheckpointError:
    value = quote(fields.get(f"{family.gguf}.{key}"))
    return CheckpointError(
        f"{place}: {family.gguf}.{key} {value} is not what {family.name} models have", hint=HINT
    )
