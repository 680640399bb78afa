"""Dimensions as keys of a GGUF, and what llama.cpp takes for granted instead of reading it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFWriter, RopeScalingType

from edgepack.architectures.base import FULL, NO_ROPE, SLIDING, Architecture
from edgepack.checkpoint import gguf_mixers
from edgepack.checkpoint.base import Dimensions
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
    writer.add_feed_forward_length(d.intermediate_size)
    writer.add_head_count(d.num_attention_heads)
    writer.add_head_count_kv(gguf_mixers.kv_heads(d))
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.rms_norm_eps)
    writer.add_vocab_size(d.vocab_size)
    writer.add_rope_dimension_count(d.rotary_dim)
    writer.add_rope_freq_base(d.rope_theta)
    _write_scaling(writer, family, d)
    _write_kinds(writer, family, d)
    gguf_mixers.write(writer, family, d)
    for ours, number in family.numbers.items():
        value = getattr(d, ours)
        if number.gguf and value is not None:
            writer.add_float32(f"{family.gguf}.{number.gguf}", number.written(value))


def _write_scaling(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
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
    elif kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(scaling["attention_factor"])


def _write_kinds(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
    if SLIDING not in d.kinds:
        return
    assert d.sliding_window is not None
    writer.add_sliding_window(d.sliding_window)
    if d.layer_types != assumed_types(family, d.num_hidden_layers):
        writer.add_sliding_window_pattern([kind == SLIDING for kind in d.layer_types])
    if "rope_theta" in d.kinds[SLIDING]:
        writer.add_rope_freq_base_swa(d.kinds[SLIDING]["rope_theta"])


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
    if SLIDING in assumed and FULL not in d.layer_types and SLIDING not in d.layer_types:
        yield "with layer_types"
    own: dict[str, Any] = {**d.kinds.get(SLIDING, {})}
    if own.get("rope_scaling") is not None:
        yield "without scaled rotary positions in sliding_attention"
    yield from gguf_mixers.assumed_otherwise(d)
    for ours, number in family.numbers.items():
        if number.assumed is not None and getattr(d, ours) is None:
            yield f"with {number.key}, which is null here"
    scaling = d.rope_scaling or {}
    if scaling.get("rope_type") == "yarn":
        yield from _yarn_otherwise(scaling)
    if (scale := family.numbers.get("attention_scale")) and not scale.gguf:
        usual = d.head_dim if d.num_hidden_layers != _LARGEST.get(family.gguf) else None
        wanted = (usual or d.hidden_size // d.num_attention_heads) ** -0.5
        if not math.isclose(d.score_scale, wanted, rel_tol=1e-6):
            given = scale.written(d.score_scale)
            yield f"with {scale.key} {scale.written(wanted):g}, not {given:g}"


_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Blocks of the 27B models, whose attention llama.cpp scales by hidden size / heads."""


def _yarn_otherwise(scaling: Mapping[str, Any]) -> Iterator[str]:
    def growth(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(scaling["factor"], 1.0)) + 1.0

    tempered = scaling.get("llama_4_scaling_beta") and scaling.get("mscale_all_dim")
    wanted = growth(1.0) / growth((tempered and scaling["mscale_all_dim"]) or 0.0)
    if not math.isclose(scaling["attention_factor"], wanted, rel_tol=1e-3):
        yield f"with attention_factor {wanted:g} here, not {scaling['attention_factor']:g}"
    if not scaling["truncate"]:
        yield "with YaRN's range truncated to whole dimensions (truncate: true)"
