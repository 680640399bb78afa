"""Types and bounds of the keys of a GGUF that edgepack reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from gguf import TokenType
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from edgepack.checkpoint import rope
from edgepack.checkpoint.config import Blocks, Epsilon, Width
from edgepack.checkpoint.rope import Positions
from edgepack.core.untrusted import Untrusted, quote, shorten, validate
from edgepack.errors import CheckpointError

MAX_EXPERTS = 512
"""llama.cpp's own limit."""
MAX_TOKEN = 1024
"""Most characters of a token; merges are found by cutting every token at every position."""
MAX_CHARACTERS = 16 << 20
"""Most characters of all tokens; a vocabulary of 256k tokens has 2 million."""

HINT = "convert the model again with llama.cpp's convert_hf_to_gguf.py"


def _same_everywhere(value: Any) -> Any:
    """The value of a list with one for each block, as llama.cpp takes it; they must be equal."""
    if not isinstance(value, list) or not value:
        return value
    if any(type(other) is not type(value[0]) or other != value[0] for other in value):
        raise ValueError(
            "differs from block to block; edgepack reads models whose blocks are alike"
        )
    return value[0]


def _neutral(value: Any) -> Any:
    if value not in (None, False, 0, 1.0):
        raise ValueError(f"{quote(value)} is not supported")
    return value


def _same_where_any(value: Any) -> Any:
    """As `_same_everywhere`, over the blocks that have any: those without attention have 0."""
    if not isinstance(value, list):
        return value
    return _same_everywhere([count for count in value if count != 0] or [0])


Same = BeforeValidator(_same_everywhere)
Neutral = Annotated[float | bool | None, AfterValidator(_neutral)]
"""A number that must be 0 or 1; others change the computation, and no family here has them."""
Scale = Annotated[float, Field(ge=0, le=1e9)] | None
"""A factor or soft cap, which only some families have (`Architecture.numbers`)."""


class General(Untrusted):
    """The keys ``general.*``."""

    architecture: str = Field(alias="general.architecture")
    split_count: Annotated[int, Field(ge=0, le=65535)] = Field(1, alias="split.count")


class Numbers(Untrusted):
    """Keys that are prefixed with the architecture's name."""

    block_count: Annotated[Blocks, Same]
    context_length: Positions
    embedding_length: Annotated[Width, Same]
    feed_forward_length: Annotated[Width, Same]
    head_count: Annotated[Width, Same] = Field(alias="attention.head_count")
    head_count_kv: Annotated[Width, BeforeValidator(_same_where_any)] | None = Field(
        None, alias="attention.head_count_kv"
    )
    key_length: Annotated[Width, Same] | None = Field(None, alias="attention.key_length")
    value_length: Annotated[Width, Same] | None = Field(None, alias="attention.value_length")
    epsilon: Epsilon = Field(alias="attention.layer_norm_rms_epsilon")
    vocab_size: Width | None = None
    dimension_count: Width | None = Field(None, alias="rope.dimension_count")
    freq_base: rope.Theta = Field(10000.0, alias="rope.freq_base")
    scaling_type: str = Field("linear", alias="rope.scaling.type")
    scaling_factor: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, alias="rope.scaling.factor"
    )
    scale_linear: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, alias="rope.scale_linear"
    )
    expert_count: Annotated[int, Field(ge=0, le=MAX_EXPERTS)] = 0
    expert_used_count: Annotated[int, Field(ge=0, le=MAX_EXPERTS)] = 0
    expert_length: Annotated[Width, Same] | None = Field(None, alias="expert_feed_forward_length")
    dense_blocks: Annotated[int, Field(ge=0)] = Field(0, alias="leading_dense_block_count")
    gating: int | None = Field(None, alias="expert_gating_func")
    weights_scale: Neutral = Field(None, alias="expert_weights_scale")
    causal: Literal[True] = Field(True, alias="attention.causal")
    attention_scale: Scale = Field(None, alias="attention.scale")
    logit_scale: Scale = None
    residual_scale: Scale = None
    embedding_scale: Scale = None
    clamp: Neutral = Field(None, alias="attention.clamp_kqv")
    logit_softcap: Scale = Field(None, alias="final_logit_softcapping")
    attention_softcap: Scale = Field(None, alias="attn_logit_softcapping")
    sliding_window: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] | None = Field(
        None, alias="attention.sliding_window"
    )
    pattern: (
        Annotated[int, Field(ge=0)] | Annotated[list[bool | int], Field(max_length=100_000)] | None
    ) = Field(None, alias="attention.sliding_window_pattern")
    freq_base_swa: rope.Theta | None = Field(None, alias="rope.freq_base_swa")
    original_context: Positions | None = Field(None, alias="rope.scaling.original_context_length")
    beta_fast: rope.Factor = Field(32.0, alias="rope.scaling.yarn_beta_fast")
    beta_slow: rope.Factor = Field(1.0, alias="rope.scaling.yarn_beta_slow")
    log_multiplier: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0.0, alias="rope.scaling.yarn_log_multiplier"
    )
    attention_factor: rope.Factor | None = Field(None, alias="rope.scaling.attn_factor")
    temperature: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0.0, alias="attention.temperature_scale"
    )

    @classmethod
    def key(cls, name: str) -> str:
        """GGUF's key of a field, without the architecture's name."""
        return cls.model_fields[name].alias or name

    @property
    def scales(self) -> dict[str, float | None]:
        """Factors and soft caps by our names."""
        return {
            "attention_scale": self.attention_scale,
            "logit_scale": self.logit_scale,
            "residual_scale": self.residual_scale,
            "embedding_scale": self.embedding_scale,
            "logit_softcap": self.logit_softcap,
            "attention_softcap": self.attention_softcap,
        }

    @property
    def scaling(self) -> dict[str, Any]:
        """Numbers about the scaling of rotary positions, as config.json calls them."""
        found = {
            "factor": self.rope_factor,
            "original_max_position_embeddings": self.original_context or self.context_length,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "mscale_all_dim": self.log_multiplier,
            "attention_factor": self.attention_factor,
            "llama_4_scaling_beta": self.temperature,
        }
        return {k: decimal(v) if isinstance(v, float) else v for k, v in found.items()}

    @property
    def rope_factor(self) -> float:
        """The factor of linear scaling; llama.cpp takes 0 as none."""
        given = self.scale_linear if self.scaling_factor is None else self.scaling_factor
        return given or 1.0


def decimal(value: float) -> float:
    """The shortest decimal number that rounds to the same float32: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))


def _token(text: str) -> str:
    if len(text) > MAX_TOKEN:
        raise ValueError(f"a token of {len(text)} characters; at most {MAX_TOKEN} are supported")
    return text


Strings = Annotated[list[Annotated[str, AfterValidator(_token)]], Field(max_length=1 << 24)]


class Tokenizer(Untrusted):
    """The keys ``tokenizer.*``; every id must be that of a token."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("", alias="tokenizer.ggml.model", max_length=64)
    pre: str | None = Field(None, alias="tokenizer.ggml.pre", max_length=64)
    tokens: Strings | None = Field(None, alias="tokenizer.ggml.tokens")
    scores: list[float] | None = Field(None, alias="tokenizer.ggml.scores")
    token_type: list[Annotated[int, Field(ge=0, le=max(TokenType))]] | None = Field(
        None, alias="tokenizer.ggml.token_type"
    )
    merges: list[Annotated[str, Field(max_length=2 * MAX_TOKEN + 1)]] | None = Field(
        None, alias="tokenizer.ggml.merges"
    )
    add_bos: bool | None = Field(None, alias="tokenizer.ggml.add_bos_token")
    add_eos: bool | None = Field(None, alias="tokenizer.ggml.add_eos_token")
    add_prefix: bool | None = Field(None, alias="tokenizer.ggml.add_space_prefix")
    chat_template: str | None = Field(None, alias="tokenizer.chat_template")

    @model_validator(mode="after")
    def _consistent(self) -> Tokenizer:
        tokens = self.tokens or []
        if sum(map(len, tokens)) > MAX_CHARACTERS:
            raise ValueError(f"tokenizer.ggml.tokens: more than {MAX_CHARACTERS} characters")
        for name, per_token in (("scores", self.scores), ("token_type", self.token_type)):
            if per_token and tokens and len(per_token) != len(tokens):
                raise ValueError(
                    f"tokenizer.ggml.{name} has {len(per_token)} entries for {len(tokens)} tokens"
                )
        for key, value in (self.model_extra or {}).items():
            if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
                _check_id(key, value, len(tokens))
            elif key.startswith("tokenizer.chat_template") and not _is_template(value):
                raise ValueError(f"{shorten(key, 60)} should be text, not {quote(value)}")
        return self


def _check_id(key: str, value: Any, tokens: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 <= value < tokens:
        raise ValueError(f"{shorten(key, 60)} is {quote(value)}; there are {tokens} tokens")


def _is_template(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)


def read_general(fields: Mapping[str, Any], place: str) -> General:
    """The keys ``general.*``, checked."""
    return validate(General, fields, place, CheckpointError, hint=HINT)


def read_numbers(fields: Mapping[str, Any], architecture: str, place: str) -> Numbers:
    """The dimensions, from the keys without the architecture's name."""
    prefix = f"{architecture}."
    own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    return validate(Numbers, own, place, CheckpointError, hint=HINT, prefix=prefix)


def read_tokenizer(fields: Mapping[str, Any], place: str) -> Tokenizer:
    """The tokenizer's keys, checked."""
    own = {key: value for key, value in fields.items() if key.startswith("tokenizer.")}
    return validate(Tokenizer, own, place, CheckpointError, hint=HINT)
