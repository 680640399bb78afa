"""The Mistral family."""

from edgepack.architectures.base import BLOCK, Architecture

PLUGIN = Architecture(
    name="mistral",
    class_name="MistralForCausalLM",
    gguf="llama",
    block=BLOCK,
    optional={},
    permute_qk=True,
    usual_kv_heads=8,
    window="all",
)
