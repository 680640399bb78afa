"""LFM2 with experts (8B-A1B): behind the first blocks, a router with a bias chooses them."""

from dataclasses import replace

from edgepack.architectures import lfm2
from edgepack.architectures.base import Router

EXPERTS = {
    "ffn_gate_inp": "feed_forward.gate.weight",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "ffn_gate_exps": "feed_forward.experts.{expert}.w1.weight",
    "ffn_up_exps": "feed_forward.experts.{expert}.w3.weight",
    "ffn_down_exps": "feed_forward.experts.{expert}.w2.weight",
}

PLUGIN = replace(
    lfm2.PLUGIN,
    name="lfm2_moe",
    class_name="Lfm2MoeForCausalLM",
    gguf="lfm2moe",
    block={**lfm2.PLUGIN.block, **EXPERTS},
    router=Router("sigmoid", tuple(EXPERTS), ("ffn_gate", "ffn_up", "ffn_down"), eps=1e-6),
    required={
        "conv_bias": False,
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "routed_scaling_factor": 1.0,
    },
    wrapper=(),
)
