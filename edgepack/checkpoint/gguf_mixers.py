"""Blocks with other mixers than attention, as keys of a GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from edgepack.architectures.base import CONV, FULL, LINEAR, Architecture
from edgepack.checkpoint.base import Dimensions
from edgepack.errors import CheckpointError

HINT = "convert the model again with llama.cpp's convert_hf_to_gguf.py"


def write(writer: GGUFWriter, d: Dimensions) -> None:
    """Add the keys of short convolutions: blocks that have one have no heads of keys."""
    if CONV in d.layer_types:
        writer.add_shortconv_l_cache(d.conv_kernel)


def kv_heads(d: Dimensions) -> int | list[int]:
    """Heads of keys and values; one number a block where some are convolutions and have none."""
    if CONV not in d.layer_types:
        return d.num_key_value_heads
    return [0 if kind == CONV else d.num_key_value_heads for kind in d.layer_types]


def read(
    fields: Mapping[str, Any], family: Architecture, blocks: int, place: str
) -> dict[str, Any]:
    """Our dimensions that are about mixers, for a family that has kinds of them."""
    if CONV in family.kind_roles:
        return _read_conv(fields, family, blocks, place)
    return {}


def _read_conv(
    fields: Mapping[str, Any], family: Architecture, blocks: int, place: str
) -> dict[str, Any]:
    heads = fields.get(f"{family.gguf}.attention.head_count_kv")
    kernel = fields.get(f"{family.gguf}.shortconv.l_cache")
    if not isinstance(heads, list) or len(heads) != blocks:
        raise CheckpointError(
            f"{place}: {family.gguf}.attention.head_count_kv is no list of {blocks} numbers",
            hint=HINT,
        )
    if type(kernel) is not int or not 1 <= kernel <= 1 << 16:
        raise CheckpointError(
            f"{place}: {family.gguf}.shortconv.l_cache is no number of positions", hint=HINT
        )
    types = tuple(FULL if count else CONV for count in heads)
    return {"conv_kernel": kernel, **_of_types(types)}


def _of_types(types: tuple[str, ...]) -> dict[str, Any]:
    """The kinds of blocks, as `config.read_dimensions` has them."""
    own: dict[str, dict[str, Any]] = {
        FULL: {"sliding_window": None},
        CONV: {"partial_rotary_factor": 0.0},
        LINEAR: {"partial_rotary_factor": 0.0},
    }
    return {"layer_types": types, "kinds": {kind: own[kind] for kind in sorted(set(types))}}
