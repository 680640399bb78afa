"""ERNIE 4.5 dense: a Llama whose rotary pairs are neighbours."""

from edgepack.architectures.base import BLOCK, Architecture

PLUGIN = Architecture(
    name="ernie4_5",
    class_name="Ernie4_5ForCausalLM",
    gguf="ernie4_5",
    block=BLOCK,
    required={"hidden_act": "silu", "use_bias": False},
    completed=True,
    neighbours=True,
)
