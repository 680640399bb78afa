"""Gemma 2: norms in front and behind, soft caps, windows in every other block."""

from edgepack.architectures.base import (
    BLOCK,
    FULL,
    NORMED_WRITERS,
    SLIDING,
    Architecture,
    Number,
)

NORMS = NORMED_WRITERS | {"ffn_norm": "pre_feedforward_layernorm.weight"}
NUMBERS = {
    "embedding_scale": Number("hidden_size", rule="root"),
    "attention_scale": Number("query_pre_attn_scalar", rule="inverse square"),
    "attention_softcap": Number("attn_logit_softcapping", "attn_logit_softcapping", assumed=50.0),
    "logit_softcap": Number("final_logit_softcapping", "final_logit_softcapping", assumed=30.0),
}

PLUGIN = Architecture(
    name="gemma2",
    class_name="Gemma2ForCausalLM",
    gguf="gemma2",
    block=BLOCK | NORMS,
    activation="gelu_new",
    required={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    completed=True,
    numbers=NUMBERS,
    norm_shift=1.0,
    head="tied",
    mixed=True,
    period=(SLIDING, FULL),
)
