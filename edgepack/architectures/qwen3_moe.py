"""Qwen3 with experts (30B-A3B): every block's MLP is a mixture of small ones."""

from edgepack.architectures.base import BLOCK, QK_NORM, Architecture, Router

EXPERTS = {
    "ffn_gate_inp": "mlp.gate.weight",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj.weight",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj.weight",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj.weight",
}
SHARED = {
    role: name for role, name in BLOCK.items() if role not in ("ffn_gate", "ffn_up", "ffn_down")
}

PLUGIN = Architecture(
    name="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    gguf="qwen3moe",
    block={**SHARED, **QK_NORM, **EXPERTS},
    router=Router("softmax", tuple(EXPERTS)),
    required={
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "use_sliding_window": False,
    },
    renamed={"num_experts": "num_local_experts"},
    completed=True,
)
