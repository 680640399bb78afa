"""Ministral 3: a Mistral whose queries grow with the logarithm of their position."""

from edgepack.architectures.base import BLOCK, Architecture

PLUGIN = Architecture(
    name="ministral3",
    class_name="Ministral3ForCausalLM",
    gguf="mistral3",
    block=BLOCK,
    permute_qk=True,
    required={"hidden_act": "silu", "sliding_window": None},
    completed=True,
    yarn_betas=True,
    wrapper=("mistral3",),
)
