"""SmolLM3: a Llama in which every fourth block has no rotary positions."""

from edgepack.architectures.base import BLOCK, FULL, NO_ROPE, QKV_BIAS, Architecture

PLUGIN = Architecture(
    name="smollm3",
    class_name="SmolLM3ForCausalLM",
    gguf="smollm3",
    block=BLOCK,
    optional=QKV_BIAS,
    permute_qk=True,
    required={"hidden_act": "silu", "use_sliding_window": False, "mlp_bias": False},
    completed=True,
    mixed=True,
    period=(FULL, FULL, FULL, NO_ROPE),
)
