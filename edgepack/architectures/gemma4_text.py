"""Gemma 4 (text; E2B, E4B, 12B, 31B): heads and inner widths by kind of block, keys and values
that the last blocks share, and an input of every block from a second table of embeddings."""

from dataclasses import replace

from edgepack.architectures.base import (
    BLOCK,
    FULL,
    KEYS_ONLY,
    OUTSIDE,
    QK_NORM,
    SHARED_FULL,
    SHARED_SLIDING,
    SLIDING,
)
from edgepack.architectures.gemma2 import NORMS, NUMBERS
from edgepack.architectures.gemma2 import PLUGIN as GEMMA2

PER_LAYER = {
    "inp_gate": "per_layer_input_gate.weight",
    "proj": "per_layer_projection.weight",
    "post_norm": "post_per_layer_input_norm.weight",
}
KEYS = ("attn_k", "attn_k_norm")

PLUGIN = replace(
    GEMMA2,
    name="gemma4_text",
    class_name="Gemma4ForCausalLM",
    gguf="gemma4",
    block=BLOCK | NORMS | QK_NORM | PER_LAYER | {"layer_output_scale": "layer_scalar"},
    outside={
        "token_embd": OUTSIDE["token_embd"],
        "per_layer_token_embd": "model.embed_tokens_per_layer.weight",
        "per_layer_model_proj": "model.per_layer_model_projection.weight",
        "per_layer_proj_norm": "model.per_layer_projection_norm.weight",
        "output_norm": OUTSIDE["output_norm"],
        "output": OUTSIDE["output"],
    },
    kind_roles={
        SLIDING: (*KEYS, "attn_v"),
        FULL: (*KEYS, "attn_v"),
        KEYS_ONLY: KEYS,
        SHARED_SLIDING: (),
        SHARED_FULL: (),
    },
    required={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "enable_moe_block": False,
    },
    numbers={
        "embedding_scale": NUMBERS["embedding_scale"],
        "logit_softcap": NUMBERS["logit_softcap"],
    },
    fixed={"attention_scale": 1.0},
    norm_shift=0.0,
    value_norm=True,
    sized_kinds=True,
    wrapper=("gemma4",),
    head="",
    sliding_theta=10000.0,
    period=(),
)
