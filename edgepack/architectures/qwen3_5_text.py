"""Qwen3.5 (text): three of four blocks are gated delta nets, attention's queries bring a gate."""

from edgepack.architectures.base import BLOCK, FULL, LINEAR, QK_NORM, Architecture

ATTENTION = {
    **{role: name for role, name in BLOCK.items() if name.startswith("self_attn.")},
    **QK_NORM,
}
DELTA = {
    "ssm_qkv": "linear_attn.in_proj_qkv.weight",
    "ssm_gate": "linear_attn.in_proj_z.weight",
    "ssm_alpha": "linear_attn.in_proj_a.weight",
    "ssm_beta": "linear_attn.in_proj_b.weight",
    "ssm_conv1d": "linear_attn.conv1d.weight",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm.weight",
    "ssm_out": "linear_attn.out_proj.weight",
}

PLUGIN = Architecture(
    name="qwen3_5_text",
    class_name="Qwen3_5ForCausalLM",
    gguf="qwen35",
    block=BLOCK | ATTENTION | DELTA,
    kind_roles={FULL: tuple(ATTENTION), LINEAR: tuple(DELTA)},
    shapes={"attn_q": ("q_gated", "hidden")},
    gguf_names={
        "ffn_norm": "post_attention_norm",
        "ssm_qkv": "attn_qkv",
        "ssm_gate": "attn_gate",
    },
    required={"hidden_act": "silu", "attention_bias": False},
    renamed={"conv_kernel": "linear_conv_kernel_dim"},
    completed=True,
    wrapper=("qwen3_5",),
    norm_shift=1.0,
    gated_queries=True,
    partial_rotary=True,
    rope_sections=(11, 11, 10),
    mixed=True,
)
