"""Blocks with other mixers than attention, as keys of a GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter

from edgepack.architectures.base import CONV, FULL, LINEAR, Architecture
from edgepack.checkpoint.base import Dimensions, kinds_of
from edgepack.checkpoint.gguf_keys import HINT
from edgepack.errors import CheckpointError

SIZES = {
    CONV: {"shortconv.l_cache": "conv_kernel"},
    LINEAR: {
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
    },
}
"""Kind of block → GGUF's keys, and our dimensions that they hold."""
EPSILON = 1e-6
"""Of the lengths of q and k in a gated delta net."""
MOST = 1 << 24
SECTIONS = 4
"""Numbers of rope.dimension_sections in llama.cpp; those that are left over are 0."""


def kv_heads(d: Dimensions) -> int | list[int]:
    """Heads of keys and values; one number a block where blocks differ, 0 for convolutions."""
    found = [
        0 if kind == CONV else d.block(i).num_key_value_heads
        for i, kind in enumerate(d.layer_types)
    ]
    return found if len(set(found)) > 1 else d.num_key_value_heads


def assumed_otherwise(d: Dimensions) -> Iterator[str]:
    """What llama.cpp would compute otherwise, as in `gguf_dimensions`."""
    if LINEAR in d.layer_types and d.linear_key_head_dim != d.linear_value_head_dim:
        yield "whose linear_value_head_dim is linear_key_head_dim"
    if LINEAR in d.layer_types and d.rms_norm_eps != EPSILON:
        yield f"with rms_norm_eps {EPSILON:g}, which it takes for the lengths of q and k too"
    if sum(d.rope_sections) > d.head_dim:  # it would end the process
        yield f"with heads of at least {sum(d.rope_sections)}, the sum of mrope_section"


def write(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
    """Add the keys of the mixers that a model has."""
    for kind, sizes in SIZES.items():
        if kind in family.kind_roles:
            for key, ours in sizes.items():
                writer.add_uint32(f"{family.gguf}.{key}", getattr(d, ours))
    if LINEAR in family.kind_roles:
        writer.add_ssm_inner_size(d.linear_num_value_heads * d.linear_value_head_dim)
        recurrent = [kind == LINEAR for kind in d.layer_types]
        writer.add_array(f"{family.gguf}.attention.recurrent_layers", recurrent)
        full = d.layer_types.index(FULL) if FULL in d.layer_types else len(d.layer_types)
        writer.add_full_attention_interval(full + 1)  # for llama.cpp before recurrent_layers
    if d.rope_sections:
        rest = SECTIONS - len(d.rope_sections)
        writer.add_rope_dimension_sections([*d.rope_sections, *[0] * rest])


@dataclass(frozen=True)
class _Fields:
    """A file's keys, without the architecture's name."""

    values: Mapping[str, Any]
    family: Architecture
    blocks: int
    place: str

    def size(self, key: str) -> int:
        """A positive number."""
        value = self._get(key)
        if type(value) is not int or not 1 <= value <= MOST:
            raise self._wrong(key, "no number above 0")
        return value

    def list(self, key: str, count: int) -> list[Any]:
        """A list of so many entries."""
        value = self._get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(key, f"no list of {count}")
        return value

    def _get(self, key: str) -> Any:
        return self.values.get(f"{self.family.gguf}.{key}")

    def _wrong(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.place}: {self.family.gguf}.{key} is {problem}", hint=HINT)


def read(
    fields: Mapping[str, Any], family: Architecture, blocks: int, place: str
) -> dict[str, Any]:
    """Our dimensions that are about mixers, for a family that has kinds of them."""
    about = _Fields(fields, family, blocks, place)
    found: dict[str, Any] = {}
    for kind, read_types in TYPES.items():
        if kind not in family.kind_roles:
            continue
        found |= {ours: about.size(key) for key, ours in SIZES[kind].items()}
        if kind == LINEAR:
            heads = found["linear_num_value_heads"]
            found["linear_value_head_dim"] = about.size("ssm.inner_size") // heads
        types = read_types(about)
        found |= {"layer_types": types, "kinds": kinds_of(types)}
    if family.rope_sections:
        sections = about.list("rope.dimension_sections", SECTIONS)
        found["rope_sections"] = tuple(n for n in sections if n)
    return found


def _conv_types(about: _Fields) -> tuple[str, ...]:
    heads = about.list("attention.head_count_kv", about.blocks)
    return tuple(FULL if count else CONV for count in heads)


def _linear_types(about: _Fields) -> tuple[str, ...]:
    """From attention.recurrent_layers, or in older files from the interval of full attention."""
    if f"{about.family.gguf}.attention.recurrent_layers" in about.values:
        recurrent = about.list("attention.recurrent_layers", about.blocks)
    else:
        every = about.size("full_attention_interval")
        recurrent = [(i + 1) % every != 0 for i in range(about.blocks)]
    return tuple(LINEAR if flag else FULL for flag in recurrent)


TYPES: Mapping[str, Callable[[_Fields], tuple[str, ...]]] = {
    CONV: _conv_types,
    LINEAR: _linear_types,
}
