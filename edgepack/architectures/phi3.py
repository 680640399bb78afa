"""Phi-3 and Phi-4-mini: q, k and v are one weight, and so are gate and up projection."""

from edgepack.architectures.base import BLOCK, FUSED_QKV, Architecture

SEPARATE = ("attn_q", "attn_k", "attn_v", "ffn_gate")
ROLES = {role: name for role, name in BLOCK.items() if role not in SEPARATE}

PLUGIN = Architecture(
    name="phi3",
    class_name="Phi3ForCausalLM",
    gguf="phi3",
    block=FUSED_QKV | ROLES | {"ffn_up": "mlp.gate_up_proj.weight"},
    shapes={"ffn_up": ("gate_up", "hidden")},
    square_q=True,
    completed=True,
    partial_rotary=True,
    window="all",
)
