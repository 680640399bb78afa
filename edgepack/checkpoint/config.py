"""config.json, the index of shards and generation_config.json: types and bounds of what is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model

from edgepack.architectures.base import FULL, NO_ROPE, SLIDING, Architecture
from edgepack.checkpoint import completed, detect, rope, sized_kinds
from edgepack.checkpoint.base import Dimensions, factors, kinds_of
from edgepack.checkpoint.completed import HINT
from edgepack.core.untrusted import Untrusted, quote, shorten, validate
from edgepack.errors import CheckpointError

Width = Annotated[int, Field(ge=1, le=1 << 24)]
"""Width of a matrix; GPT-4's vocabulary has 2^17 rows."""
Blocks = Annotated[int, Field(ge=1, le=100_000)]
Epsilon = Annotated[float, Field(ge=1e-20, le=1.0)]
TokenId = Annotated[int, Field(ge=-1, le=1 << 31)]
"""Some exporters write -1 for none."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Size = Annotated[int, Field(ge=0, le=1 << 24)]
"""Size of a part that many families do not have: 0."""
MIXERS = (
    "conv_kernel",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
)
"""Dimensions of convolutions and gated delta nets."""
EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "num_dense_layers")
"""Dimensions of families with experts."""


class Config(rope.Rotary):
    """The entries of config.json that are read. `_model` adds the family's names and defaults."""

    num_hidden_layers: Blocks
    hidden_size: Width
    intermediate_size: Width
    num_attention_heads: Width
    vocab_size: Width
    num_key_value_heads: Width | None
    head_dim: Width | None
    rms_norm_eps: Epsilon
    tie_word_embeddings: bool
    sliding_window: rope.Positions | None = None
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Field(ge=0, le=1 << 31)] = 28  # transformers' default
    layer_types: Annotated[list[str], Field(max_length=100_000)] | None = None
    no_rope_layers: Annotated[list[int], Field(max_length=100_000)] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    conv_kernel: Size = 0
    linear_num_key_heads: Size = 0
    linear_num_value_heads: Size = 0
    linear_key_head_dim: Size = 0
    linear_value_head_dim: Size = 0
    hidden_size_per_layer_input: Size = 0
    num_kv_shared_layers: Size = 0
    use_double_wide_mlp: bool = False
    attention_k_eq_v: bool = False
    per_layer_config: dict[str, dict[str, Width]] | None = None
    num_experts: Size | None = 0
    num_experts_per_tok: Size | None = 0
    moe_intermediate_size: Size | None = 0
    num_dense_layers: Size = 0
    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    unk_token_id: TokenId | list[TokenId] | None = None
    sep_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | list[TokenId] | None = None
    mask_token_id: TokenId | list[TokenId] | None = None


class Generation(Untrusted):
    """The entries of generation_config.json that are read."""

    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | list[TokenId] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None


def _plain_name(name: str) -> str:
    """Check that a shard is in the folder itself."""
    plain = PurePosixPath(name).name == name and "\\" not in name and ":" not in name
    if not (plain and name.isprintable() and len(name) <= 255 and name.endswith(".safetensors")):
        raise ValueError(
            f"{quote(shorten(name, 60))} is no name of a .safetensors file in the model's folder"
        )
    return name


class Index(Untrusted):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: Annotated[
        dict[str, Annotated[str, AfterValidator(_plain_name)]],
        Field(min_length=1, max_length=1_000_000),
    ]


@cache
def _model(family: str, defaults: tuple[tuple[str, str, Any], ...]) -> type[Config]:
    """`Config` with the family's names and defaults: (our name, the file's, default)."""
    fields: dict[str, Any] = {
        ours: (Config.model_fields[ours].rebuild_annotation(), Field(default, alias=theirs))
        for ours, theirs, default in defaults
    }
    return create_model(f"{family}Config", __base__=Config, **fields)


def read(content: Mapping[str, Any], place: str) -> tuple[Architecture, Config, Dimensions]:
    """The family, the entries and the dimensions of a config.json, completed as transformers does
    it; of a multimodal repository, those of its language model."""
    content = completed.text_config(content, place)
    family = detect.architecture(content, place)
    content = completed.complete(content, family, place)
    detect.refuse_other_settings(content, family, place)
    return family, *read_dimensions(content, family, place)


def read_dimensions(
    content: Mapping[str, Any], architecture: Architecture, place: str
) -> tuple[Config, Dimensions]:
    """The dimensions in a config.json, as transformers reads them."""
    ignored = architecture.ignored
    heard = {key: value for key, value in content.items() if key not in ignored}
    where = f"{place}: config.json"
    config = validate(_model_of(architecture), heard, where, CheckpointError, hint=HINT)
    heads = config.num_attention_heads
    if config.head_dim is None and config.hidden_size % heads:
        raise CheckpointError(
            f"{place}: config.json: hidden_size {config.hidden_size} is no multiple of "
            f"num_attention_heads {heads}, and there is no head_dim",
            hint=HINT,
        )
    head_dim = config.head_dim or config.hidden_size // heads
    positions = rope.from_config(config, architecture, head_dim, place)
    types, kinds = _blocks(config, architecture, positions, place)
    dimensions = Dimensions(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        sliding_window=_sliding_window(config, architecture, place),
        tie_word_embeddings=config.tie_word_embeddings,
        layer_types=types,
        kinds=kinds,
        rope_sections=rope.sections(config, architecture),
        hidden_size_per_layer_input=config.hidden_size_per_layer_input,
        **{name: getattr(config, name) for name in MIXERS},
        **_experts(config, architecture, place),
        **positions[FULL],
        **_numbers(heard, architecture, head_dim, where),
        **architecture.fixed,
    )
    if architecture.sized_kinds:
        dimensions = sized_kinds.of_config(dimensions, config, where)
    check_heads(dimensions, architecture, f"{place}: config.json")
    _check_value_heads(config, place)
    return config, dimensions


def _numbers(
    content: Mapping[str, Any], family: Architecture, head_dim: int, where: str
) -> dict[str, Any]:
    """The family's factors and soft caps; null is none."""
    found = {ours: content.get(number.key) for ours, number in family.numbers.items()}
    read: dict[str, float] = {}
    for ours, value in found.items():
        number = family.numbers[ours]
        if value is None:
            continue
        if type(value) not in (int, float) or not 0 < value <= 1e9:
            raise CheckpointError(
                f"{where}: {number.key} should be a positive number, not {quote(value)}", hint=HINT
            )
        read[ours] = number.read(value)
    return factors(read, head_dim)


def _blocks(
    config: Config,
    family: Architecture,
    positions: Mapping[str, Mapping[str, Any]],
    place: str,
) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """The kind of every block, and what each kind has of its own; empty if all are alike."""
    if not family.mixed:
        return (), {}
    layers, types = config.num_hidden_layers, config.layer_types or ()
    _check_types(config, family, place)
    turning = config.no_rope_layers or [1] * layers
    if len(turning) < layers:
        raise CheckpointError(
            f"{place}: config.json: no_rope_layers has {len(turning)} entries for {layers} layers",
            hint=HINT,
        )
    found = tuple(
        kind if turns else NO_ROPE for kind, turns in zip(types, turning[:layers], strict=True)
    )
    return found, kinds_of(found, positions.get(SLIDING, {}))


def _check_types(config: Config, family: Architecture, place: str) -> None:
    """Refuse kinds of blocks that the family does not have, or too few of them."""
    types = config.layer_types or ()
    known: tuple[str, ...] = (FULL, SLIDING)
    if family.kind_roles and not family.sized_kinds:
        known = tuple(family.kind_roles)
    if len(types) != config.num_hidden_layers:
        raise CheckpointError(
            f"{place}: config.json: layer_types has {len(types)} entries for "
            f"{config.num_hidden_layers} layers",
            hint=HINT,
        )
    if unknown := set(types) - set(known):
        raise CheckpointError(
            f"{place}: config.json: layer_types {quote(min(unknown))} is not supported",
            hint=f"supported: {', '.join(known)}",
        )


def _experts(config: Config, family: Architecture, place: str) -> dict[str, Any]:
    """The dimensions of experts, of a family that has them."""
    if family.router is None:
        return {}
    found: dict[str, Any] = {name: getattr(config, name) or 0 for name in EXPERTS}
    check_experts(found, f"{place}: config.json")
    return found


def check_experts(found: Mapping[str, int], place: str) -> None:
    """Raise unless a token can meet as many experts as it should."""
    count, used = found["num_experts"], found["num_experts_per_tok"]
    if not (1 <= used <= count and found["moe_intermediate_size"] >= 1):
        raise CheckpointError(
            f"{place}: {used} of {count} experts of width {found['moe_intermediate_size']} for "
            "every token",
            hint="the configuration is damaged, or of another model",
        )


def _check_value_heads(config: Config, place: str) -> None:
    """Raise unless the value heads of a gated delta net divide into groups."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    if keys and values % keys:
        raise CheckpointError(
            f"{place}: config.json: linear_num_value_heads {values} is no multiple of "
            f"linear_num_key_heads {keys}",
            hint=HINT,
        )


def bias_switch(role: str) -> str:
    """The entry of config.json that says whether a role's optional bias is there."""
    return "mlp_bias" if role.startswith("ffn_") else "attention_bias"


def check_heads(dims: Dimensions, architecture: Architecture, place: str) -> None:
    """Raise unless query heads divide into groups, and rotary dimensions into pairs."""
    heads, groups = dims.num_attention_heads, dims.num_key_value_heads
    if heads % groups:
        raise CheckpointError(
            f"{place}: {heads} attention heads do not divide into {groups} key-value heads",
            hint="the configuration is damaged, or of another model",
        )
    turning = dims.rotary_dim
    if "position_embd" not in architecture.outside and (turning % 2 or not turning):
        raise CheckpointError(
            f"{place}: {turning} columns of a head of {dims.head_dim} turn with the position, "
            "which is no number of pairs",
            hint="the configuration is damaged, or of another model",
        )


def _model_of(architecture: Architecture) -> type[Config]:
    defaults: dict[str, Any] = {
        "intermediate_size": ...,
        "hidden_size": ...,
        "num_hidden_layers": ...,
        "num_attention_heads": ...,
        "vocab_size": ...,
        "max_position_embeddings": ...,
        "num_key_value_heads": architecture.usual_kv_heads,
        "head_dim": architecture.usual_head_dim,
        "rms_norm_eps": architecture.usual_eps,
        "tie_word_embeddings": architecture.tied,
        "conv_kernel": 0,
        "num_experts": 0,
    }
    named = tuple(
        (ours, architecture.renamed.get(ours, ours), default) for ours, default in defaults.items()
    )
    return _model(architecture.name, named)


def _sliding_window(config: Config, architecture: Architecture, place: str) -> int | None:
    """The window if all layers have one, None if none has."""
    given = "sliding_window" in config.model_fields_set
    window = config.sliding_window if given else architecture.usual_window
    if architecture.mixed and window is not None and SLIDING in (config.layer_types or ()):
        return window
    if architecture.window == "" or window is None:
        return None
    if architecture.window == "by layer" and not config.use_sliding_window:
        return None
    kinds = _kinds(config, architecture)
    if config.layer_types is not None:
        _check_types(config, architecture, place)
    if len(kinds) > 1:
        raise CheckpointError(
            f"{place}: only some layers have a sliding window",
            hint="set use_sliding_window to false in config.json, as llama.cpp runs it",
        )
    return window if kinds == {SLIDING} else None


def _kinds(config: Config, architecture: Architecture) -> set[str]:
    """The kinds of attention that layers have, as transformers derives them."""
    if config.layer_types is not None:
        return set(config.layer_types)
    if architecture.window == "all":
        return {SLIDING}
    layers, full = config.num_hidden_layers, config.max_window_layers
    kinds = {FULL} if full else set()
    return kinds | ({SLIDING} if full < layers else set())
