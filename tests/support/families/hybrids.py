"""Families with other mixers than attention, and with experts."""

from __future__ import annotations

from tests.support.families.variant import (
    EPSILON,
    FULL,
    LINEAR,
    SLIDING,
    TIED,
    UNTIED,
    WIDE,
    WINDOW,
    YARN,
    Config,
    family,
)

DELTA = "linear_attention"
qwen35 = family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    {
        **UNTIED,
        **WIDE,
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 5,
        "layer_types": [DELTA, DELTA, DELTA, FULL, DELTA],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    },
    double=True,
)
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
QWEN_VISION |= {"out_hidden_size": 64, "num_position_embeddings": 16, "patch_size": 4}
MTP = {
    "mtp.fc.weight": (64, 128),
    "mtp.norm.weight": (64,),
    "mtp.pre_fc_norm_embedding.weight": (64,),
    "mtp.layers.0.input_layernorm.weight": (64,),
}
"""A few tensors of the head that predicts a second token."""

CONV: Config = {"layer_types": ["conv", "conv", FULL, "conv", FULL, "conv"]}
LFM: Config = {**TIED, **CONV, "num_hidden_layers": 6, "conv_L_cache": 3, "norm_eps": EPSILON}
lfm2 = family("lfm2", "Lfm2ForCausalLM", {**LFM, "block_auto_adjust_ff_dim": False})
ADJUSTED: Config = {
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 32,
    "intermediate_size": 150,
}

EXPERTS: Config = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
qwen3_moe = family(
    "qwen3_moe", "Qwen3MoeForCausalLM", {**UNTIED, **WIDE, **EXPERTS, "norm_topk_prob": True}
)
lfm2_moe = family("lfm2_moe", "Lfm2MoeForCausalLM", {**LFM, **EXPERTS, "num_dense_layers": 2})
gpt_oss = family(
    "gpt_oss",
    "GptOssForCausalLM",
    {
        **UNTIED,
        **WIDE,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "intermediate_size": 64,
        "sliding_window": WINDOW,
        "rope_parameters": {**YARN, "truncate": True},
    },
)

HYBRIDS = [
    qwen35,
    qwen35.but("tied", TIED),
    qwen35.but("equal-heads", {"linear_num_value_heads": 2}),
    qwen35.but("every-2nd", {"layer_types": [DELTA, FULL, DELTA, FULL, DELTA]}),
    qwen35.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    qwen35.but(
        "epsilon",
        {"rms_norm_eps": EPSILON},
        refused="llama.cpp has one ε for RMS norms and for the lengths of q and k",
    ),
    qwen35.but("mtp", passed_over=MTP),
    qwen35.but(
        "wrapped",
        class_name="Qwen3_5ForConditionalGeneration",
        outer={"vision_config": QWEN_VISION, "tie_word_embeddings": False},
        passed_over=MTP,
    ),
    lfm2,
    lfm2.but("adjusted", ADJUSTED),
    lfm2.but("untied", UNTIED),
    lfm2.but("older-keys", older=True),
    lfm2.but("conv-bias", {"conv_bias": True}, refused="llama.cpp has no place for the biases"),
    qwen3_moe,
    qwen3_moe.but("tied", TIED),
    qwen3_moe.but("linear", {"rope_parameters": LINEAR}),
    qwen3_moe.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    qwen3_moe.but("older-keys", older=True),
    qwen3_moe.but("not-normed", {"norm_topk_prob": False}, refused="llama.cpp always divides"),
    qwen3_moe.but("dense-block", {"mlp_only_layers": [1]}, refused="every block has experts there"),
    lfm2_moe,
    lfm2_moe.but("older-keys", older=True, seed=1),
    lfm2_moe.but("no-bias", {"use_expert_bias": False}, refused="llama.cpp wants the bias"),
    lfm2_moe.but("not-normed", {"norm_topk_prob": False}, refused="llama.cpp always divides"),
    lfm2_moe.but("scaled", {"routed_scaling_factor": 2.5}, refused="llama.cpp does not scale"),
    gpt_oss,
    gpt_oss.but(
        "not-truncated",
        {"rope_parameters": {**YARN, "truncate": False}},
        refused="llama.cpp truncates the range of yarn",
    ),
    gpt_oss.but("limit", {"swiglu_limit": 3.0}, refused="the limit is 7 in llama.cpp"),
    gpt_oss.but("older-keys", older=True),
    gpt_oss.but("plain-rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    gpt_oss.but("kinds", {"layer_types": [FULL, SLIDING, FULL, SLIDING]}, converter="no pattern"),
]
