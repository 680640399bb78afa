"""Gemma 3 (text): norms in front and behind, and of q and k; windows in five of six blocks, with
rotary positions of their own."""

from dataclasses import replace

from edgepack.architectures.base import BLOCK, FULL, QK_NORM, SLIDING, Number
from edgepack.architectures.gemma2 import NORMS, NUMBERS
from edgepack.architectures.gemma2 import PLUGIN as GEMMA2

PLUGIN = replace(
    GEMMA2,
    name="gemma3_text",
    class_name="Gemma3ForCausalLM",
    gguf="gemma3",
    block=BLOCK | NORMS | QK_NORM,
    required={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    numbers={
        "embedding_scale": NUMBERS["embedding_scale"],
        "attention_scale": NUMBERS["attention_scale"],
        "logit_softcap": Number("final_logit_softcapping", "final_logit_softcapping"),
    },
    wrapper=("gemma3",),
    head="",
    sliding_theta=10000.0,
    period=(SLIDING,) * 5 + (FULL,),
)
