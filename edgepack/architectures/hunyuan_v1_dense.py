"""Hunyuan dense: norms of q and k behind the rotation."""

from edgepack.architectures.base import BLOCK, Architecture

HEAD_NORMS = {
    "attn_q_norm": "self_attn.query_layernorm.weight",
    "attn_k_norm": "self_attn.key_layernorm.weight",
}

PLUGIN = Architecture(
    name="hunyuan_v1_dense",
    class_name="HunYuanDenseV1ForCausalLM",
    gguf="hunyuan-dense",
    block=BLOCK | HEAD_NORMS,
    required={"hidden_act": "silu", "attention_bias": False},
    completed=True,
    head_norms_last=True,
)
