"""Gemma 1: a Llama with gains stored as γ − 1, embeddings scaled by √hidden, and GELU."""

from edgepack.architectures.base import BLOCK, Architecture
from edgepack.architectures.gemma2 import NUMBERS

PLUGIN = Architecture(
    name="gemma",
    class_name="GemmaForCausalLM",
    gguf="gemma",
    block=BLOCK,
    activation="gelu_new",
    required={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    completed=True,
    numbers={"embedding_scale": NUMBERS["embedding_scale"]},
    norm_shift=1.0,
    head="tied",
)
