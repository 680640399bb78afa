"""The Qwen2 family."""

from edgepack.architectures.base import BLOCK, QKV_BIAS, Architecture

PLUGIN = Architecture(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    gguf="qwen2",
    block=BLOCK | QKV_BIAS,
    optional={},
    permute_qk=False,
    square_q=True,
    usual_kv_heads=32,
    window="by layer",
)
