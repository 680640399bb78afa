"""EXAONE 4: norms only behind attention and MLP, and of q and k. The 32B, which has windows, is
another computation in llama.cpp and is refused."""

from edgepack.architectures.base import NORMED_WRITERS, QK_NORM, Architecture
from edgepack.architectures.olmo2 import ROLES

PLUGIN = Architecture(
    name="exaone4",
    class_name="Exaone4ForCausalLM",
    gguf="exaone4",
    block=ROLES | QK_NORM | NORMED_WRITERS,
    square_q=True,
    required={"hidden_act": "silu", "sliding_window": None},
    completed=True,
    mixed=True,
)
