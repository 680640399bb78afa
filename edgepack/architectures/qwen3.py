"""The Qwen3 family."""

from edgepack.architectures.base import BLOCK, QK_NORM, QKV_BIAS, Architecture

PLUGIN = Architecture(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    gguf="qwen3",
    block=BLOCK | QK_NORM,
    optional=QKV_BIAS,
    permute_qk=False,
    usual_kv_heads=32,
    usual_head_dim=128,
    window="by layer",
)
