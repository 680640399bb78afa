"""Granite 4 without experts and state-space blocks: a Granite 3 whose gate and up projection are
stored as one."""

from dataclasses import replace

from edgepack.architectures.base import QKV_BIAS
from edgepack.architectures.granite import PLUGIN as GRANITE

PLUGIN = replace(
    GRANITE,
    name="granitemoehybrid",
    class_name="GraniteMoeHybridForCausalLM",
    optional=QKV_BIAS,
    stored={
        "shared_mlp.input_linear.weight": ("ffn_gate", "ffn_up"),
        "shared_mlp.output_linear.weight": ("ffn_down",),
    },
    required={"hidden_act": "silu", "position_embedding_type": "rope", "num_local_experts": 0},
    renamed={"intermediate_size": "shared_intermediate_size"},
    saved_as="granite",
)
