"""Granite 3 and 4 dense: a Llama with four factors."""

from edgepack.architectures.base import BLOCK, QKV_BIAS, Architecture, Number

BIASES = {
    "attn_output.bias": "self_attn.o_proj.bias",
    "ffn_gate.bias": "mlp.gate_proj.bias",
    "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias",
}
NUMBERS = {
    "embedding_scale": Number("embedding_multiplier", "embedding_scale"),
    "residual_scale": Number("residual_multiplier", "residual_scale"),
    "attention_scale": Number("attention_multiplier", "attention.scale"),
    "logit_scale": Number("logits_scaling", "logit_scale", "inverse"),
}

PLUGIN = Architecture(
    name="granite",
    class_name="GraniteForCausalLM",
    gguf="granite",
    block=BLOCK,
    optional=QKV_BIAS | BIASES,
    permute_qk=True,
    required={"hidden_act": "silu"},
    completed=True,
    numbers=NUMBERS,
)
