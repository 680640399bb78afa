"""A variant of a family: what a tiny random model of it is made from.

Sizes are the smallest that tell a right file from a wrong one: more tokens than a window, at least
one period of kinds of blocks, ramps of rotary scalings inside the tested positions, fewer key-value
heads than heads, heads of another width than hidden / heads wherever a family may have them, and
soft caps that are reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Config = Mapping[str, Any]

WINDOW = 8
LENGTH = 48
"""Tokens that models are compared on."""

EPSILON = 0.01
"""So large that a wrong one shows."""
EPSILONS = {"norm_eps", "layer_norm_eps"}
"""Other names of ``rms_norm_eps``."""

SLIDING, FULL = "sliding_attention", "full_attention"
BASE: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": EPSILON,
}
WIDE: Config = {"head_dim": 32}
TIED: Config = {"tie_word_embeddings": True}
UNTIED: Config = {"tie_word_embeddings": False}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 974,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
"""With llama.cpp's betas; theta and context are such that half as much again of either shows."""
STRETCHED: Config = {"rope_parameters": YARN, "max_position_embeddings": 3896}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


NO_WINDOW = "llama.cpp knows no window for this architecture"
"""So that a GGUF is right up to the window at most; its context may be that long."""


@dataclass(frozen=True)
class Variant:
    """A model: `class_name` of transformers with the settings `config` (of the text part, if there
    is an `outer` configuration around it).

    `family` is the text part's ``model_type``. `published` are keys of config.json that are spelled
    otherwise in published checkpoints, `passed_over` tensors that are no part of the model, `rows`
    rows of the embedding beyond the tokenizer's. `older` writes config.json with the keys of
    transformers 4, as most published checkpoints have it. `double` is for models of which
    transformers itself is 1e-4 off in float32, another `seed` for models in which two experts are
    equally good for a token but for rounding. `refused` says why llama.cpp would compute something
    else, so that there must be no GGUF; `converter` what llama.cpp's converter gets wrong, so that
    only its file is off.
    """

    family: str
    name: str
    class_name: str
    config: Config
    tokenizer: str = "bytes"
    outer: Config | None = None
    rows: int = 0
    gelu: bool = False
    double: bool = False
    seed: int = 0
    older: bool = False
    published: Config = field(default_factory=dict)
    passed_over: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    refused: str = ""
    converter: str = ""

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"

    def but(self, name: str, more: Config = {}, **changes: Any) -> Variant:  # noqa: B006
        """Another variant of the same family."""
        return replace(self, name=name, config={**self.config, **more}, **changes)


def family(name: str, class_name: str, more: Config = {}, **given: Any) -> Variant:  # noqa: B006
    """The first variant of a family, ``plain``: `BASE` with the settings `more`."""
    base = dict(BASE)
    if EPSILONS & set(more):
        del base["rms_norm_eps"]
    return Variant(name, "plain", class_name, {**base, **more}, **given)
