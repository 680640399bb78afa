"""The Llama family."""

from edgepack.architectures.base import BLOCK, QKV_BIAS, Architecture

PLUGIN = Architecture(
    name="llama",
    class_name="LlamaForCausalLM",
    gguf="llama",
    block=BLOCK,
    optional=QKV_BIAS,
    permute_qk=True,
)
