"""Dimensions as keys of a GGUF, and what llama.cpp takes for granted instead of reading it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from gguf import GGUFWriter, RopeScalingType

from edgepack.architectures.base import FULL, NO_ROPE, SLIDING, Architecture, Number
from edgepack.checkpoint import gguf_experts, gguf_mixers, gguf_sized_kinds, rope
from edgepack.checkpoint.base import Dimensions, factors, kinds_of
from edgepack.checkpoint.gguf_keys import HINT, Numbers, decimal
from edgepack.errors import CheckpointError


def write(writer: GGUFWriter, family: Architecture, d: Dimensions, place: str) -> None:
    """Add the keys of a model; one that llama.cpp would load and compute otherwise is refused."""
    for problem in _assumed_otherwise(family, d):
        raise CheckpointError(
            f"{place}: llama.cpp computes {family.gguf} models only {problem}",
            hint="write --target onnx, which has no such limit",
        )
    uniform = None if d.layer_types else d.sliding_window
    writer.add_block_count(d.num_hidden_layers)
    writer.add_context_length(min(d.max_position_embeddings, uniform or 1 << 31))
    writer.add_embedding_length(d.hidden_size)
    writer.add_feed_forward_length(gguf_sized_kinds.inner_widths(d))
    writer.add_head_count(d.num_attention_heads)
    writer.add_head_count_kv(gguf_mixers.kv_heads(d))
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.rms_norm_eps)
    writer.add_vocab_size(d.vocab_size)
    writer.add_rope_dimension_count(d.rotary_dim)
    writer.add_rope_freq_base(d.rope_theta)
    _write_scaling(writer, d)
    _write_kinds(writer, family, d)
    gguf_mixers.write(writer, family, d)
    gguf_sized_kinds.write(writer, family, d)
    gguf_experts.write(writer, family, d)
    for ours, number in family.numbers.items():
        value = getattr(d, ours)
        if number.gguf and value is not None:
            writer.add_float32(f"{family.gguf}.{number.gguf}", number.written(value))


def _write_scaling(writer: GGUFWriter, d: Dimensions) -> None:
    scaling = d.rope_scaling or {}
    kind = scaling.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
        if scaling.get("llama_4_scaling_beta"):
            writer.add_rope_scaling_yarn_log_mul(scaling.get("mscale_all_dim") or 0.0)
            writer.add_attn_temperature_scale(scaling["llama_4_scaling_beta"])
    elif kind == "longrope" and not rope.is_fixed(scaling):
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(scaling["attention_factor"])


def _write_kinds(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
    if SLIDING not in d.kinds:
        return
    assert d.sliding_window is not None
    writer.add_sliding_window(d.sliding_window)
    if d.layer_types != assumed_types(family, d.num_hidden_layers):
        writer.add_sliding_window_pattern(
            [kind in gguf_sized_kinds.SLIDES for kind in d.layer_types]
        )
    if "rope_theta" in d.kinds[SLIDING]:
        writer.add_rope_freq_base_swa(d.kinds[SLIDING]["rope_theta"])


def read_kinds(
    family: Architecture, numbers: Numbers, theta: float, place: str
) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """The kind of every block, and what each kind has of its own, as llama.cpp takes them."""
    if not family.mixed:
        return (), {}
    blocks, pattern, period = numbers.block_count, numbers.pattern, family.period
    if not numbers.sliding_window and not period:
        types: tuple[str, ...] = (FULL,) * blocks
    elif isinstance(pattern, list):
        if len(pattern) != blocks:
            raise CheckpointError(
                f"{place}: {len(pattern)} entries of attention.sliding_window_pattern for "
                f"{blocks} blocks",
                hint=HINT,
            )
        types = tuple(SLIDING if slides else FULL for slides in pattern)
    elif pattern is not None or not period:
        every = pattern or 4
        types = tuple(FULL if (i + 1) % every == 0 else SLIDING for i in range(blocks))
    else:
        types = assumed_types(family, blocks)
    local = decimal(numbers.freq_base_swa) if numbers.freq_base_swa else family.sliding_theta
    unscaled = {"rope_theta": local or theta, "rope_scaling": None, "partial_rotary_factor": 1.0}
    return types, kinds_of(types, {} if family.sliding_theta is None else unscaled)


def read_numbers(
    family: Architecture, numbers: Numbers, head_dim: int, place: str
) -> dict[str, Any]:
    """Factors and soft caps of our dimensions. A file that has one which its family has not is
    refused, because llama.cpp may or may not use it."""
    read: dict[str, float] = {}
    for ours, value in numbers.scales.items():
        number = family.numbers.get(ours)
        if number is None and value not in (None, 0, 1):
            raise CheckpointError(
                f"{place}: {family.gguf}.{numbers.key(ours)} {value:g} is not supported", hint=HINT
            )
        if number is None or not number.gguf:
            continue
        value = number.assumed if value is None else decimal(value)
        if value:
            read[ours] = number.read(value)
    if family.numbers.get("embedding_scale", Number("")).rule == "root":
        read["embedding_scale"] = math.sqrt(numbers.embedding_length)
    if numbers.block_count == _LARGEST.get(family.gguf):
        read["attention_scale"] = max(1, numbers.embedding_length // numbers.head_count) ** -0.5
    return factors(read, head_dim)


def assumed_types(family: Architecture, blocks: int) -> tuple[str, ...]:
    """The kinds of blocks that llama.cpp takes for granted; empty if the family has no such."""
    if not family.period:
        return ()
    return tuple(family.period[i % len(family.period)] for i in range(blocks))


def _assumed_otherwise(family: Architecture, d: Dimensions) -> Iterator[str]:
    """What llama.cpp would compute otherwise, in words that end "llama.cpp computes … only"."""
    assumed = assumed_types(family, d.num_hidden_layers)
    if NO_ROPE in {*assumed, *d.layer_types} and d.layer_types != assumed:
        every = len(family.period)
        yield f"with no rotary positions in every {every}th block and nowhere else"
    if SLIDING in d.layer_types and d.sliding_window is None:
        yield "with a sliding_window where layer_types has sliding_attention"
    if family.head == ("untied" if d.tie_word_embeddings else "tied"):
        yield f"whose head is {family.head}"
    yield from gguf_sized_kinds.assumed_otherwise(family, d)
    own: dict[str, Any] = {**d.kinds.get(SLIDING, {})}
    if family.sliding_theta == 0.0 and own.get("rope_theta", d.rope_theta) != d.rope_theta:
        yield "with one rope_theta for all blocks"
    if own.get("rope_scaling") is not None:
        yield "without scaled rotary positions in sliding_attention"
    yield from gguf_mixers.assumed_otherwise(d)
    for ours, number in family.numbers.items():
        if number.assumed is not None and getattr(d, ours) is None:
            yield f"with {number.key}, which is null here"
    scaling = d.rope_scaling or {}
    if scaling.get("rope_type") == "yarn":
        if not family.yarn_betas and (scaling["beta_fast"], scaling["beta_slow"]) != (32.0, 1.0):
            yield "with beta_fast 32 and beta_slow 1"
        yield from _yarn_otherwise(scaling)
    if (scale := family.numbers.get("attention_scale")) and not scale.gguf:
        usual = d.head_dim if d.num_hidden_layers != _LARGEST.get(family.gguf) else None
        wanted = (usual or max(1, d.hidden_size // d.num_attention_heads)) ** -0.5
        if not math.isclose(d.score_scale, wanted, rel_tol=1e-6):
            given = scale.written(d.score_scale)
            yield f"with {scale.key} {scale.written(wanted):g}, not {given:g}"


_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Blocks of the 27B models, whose attention llama.cpp scales by hidden size / heads."""


def _yarn_otherwise(scaling: Mapping[str, Any]) -> Iterator[str]:
    growth = partial(rope.yarn_growth, scaling["factor"])
    tempered = scaling.get("llama_4_scaling_beta") and scaling.get("mscale_all_dim")
    wanted = growth(1.0) / growth((tempered and scaling["mscale_all_dim"]) or 0.0)
    if not math.isclose(scaling["attention_factor"], wanted, rel_tol=1e-3):
        yield f"with attention_factor {wanted:g} here, not {scaling['attention_factor']:g}"
    if not scaling["truncate"]:
        yield "with YaRN's range truncated to whole dimensions (truncate: true)"
