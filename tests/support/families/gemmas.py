"""Gemma 1 to 4: gains of 1 + γ, norms on both sides, soft caps, kinds of blocks."""

from __future__ import annotations

from tests.support.families.variant import (
    DEFAULT,
    FULL,
    LINEAR,
    SLIDING,
    TIED,
    WIDE,
    WINDOW,
    Config,
    family,
)

SPECIAL: Config = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
GEMMA: Config = {**TIED, **WIDE, **SPECIAL}

gemma = family("gemma", "GemmaForCausalLM", GEMMA, tokenizer="gemma", gelu=True)

CAPS: Config = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
TWO_KINDS: Config = {"sliding_window": WINDOW, "query_pre_attn_scalar": 32}
gemma2 = family(
    "gemma2", "Gemma2ForCausalLM", {**GEMMA, **CAPS, **TWO_KINDS}, tokenizer="gemma", gelu=True
)

SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32}
SIGLIP |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
THETAS: Config = {"rope_parameters": {SLIDING: DEFAULT, FULL: {**DEFAULT, "rope_theta": 1000000.0}}}
LINEAR_FULL: Config = {
    "rope_parameters": {SLIDING: DEFAULT, FULL: {**LINEAR, "rope_theta": 1000000.0}}
}
gemma3 = family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    {**GEMMA, **TWO_KINDS, **THETAS, "num_hidden_layers": 7},
    tokenizer="gemma",
    gelu=True,
)

PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
gemma4 = family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    {
        **TIED,
        **SPECIAL,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 4.0,
        "num_hidden_layers": 8,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 2,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 16,
        "rope_parameters": {SLIDING: DEFAULT, FULL: PROPORTIONAL},
    },
    tokenizer="gemma",
    gelu=True,
)
GEMMA4_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
GEMMA4_VISION |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
GEMMA4_VISION |= {"patch_size": 4, "position_embedding_size": 16, "pooling_kernel_size": 1}

SCALAR = "the scale is head_dim^-½ in llama.cpp"

GEMMAS = [
    gemma,
    gemma.but("all-heads", {"num_key_value_heads": 4, "head_dim": 16}),
    gemma.but("older-keys", older=True),
    gemma2,
    gemma2.but("older-keys", older=True),
    gemma2.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    gemma2.but("narrow", {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 5}),
    gemma2.but("scalar", {"query_pre_attn_scalar": 12}, refused=SCALAR),
    gemma2.but(
        "no-caps",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        refused="caps that are not named are 50 and 30 in llama.cpp",
    ),
    gemma2.but(
        "other-kinds",
        {"layer_types": [FULL, SLIDING, FULL, SLIDING]},
        converter="it writes no pattern",
    ),
    gemma3,
    gemma3.but("linear", LINEAR_FULL),
    gemma3.but("older-keys", LINEAR_FULL, older=True),
    gemma3.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    gemma3.but("rows", rows=8),
    gemma3.but("capped", {"final_logit_softcapping": 4.0}),
    gemma3.but("scalar", {"query_pre_attn_scalar": 12}, refused=SCALAR),
    gemma3.but(
        "every-2nd",
        {"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL, SLIDING]},
        converter="it writes no pattern",
    ),
    gemma3.but(
        "wrapped",
        LINEAR_FULL,
        class_name="Gemma3ForConditionalGeneration",
        outer={"vision_config": SIGLIP, "mm_tokens_per_image": 4},
    ),
    gemma3.but(
        "wrapped-older-keys",
        LINEAR_FULL,
        class_name="Gemma3ForConditionalGeneration",
        outer={"vision_config": SIGLIP, "mm_tokens_per_image": 4},
        older=True,
    ),
    gemma4,
    gemma4.but(
        "dense",
        {
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
    ),
    gemma4.but(
        "experts",
        {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 48,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
        },
    ),
    gemma4.but("one-width", {"use_double_wide_mlp": False}),
    gemma4.but("no-cap", {"final_logit_softcapping": None}, refused="it always caps, at 30"),
    gemma4.but(
        "wrapped",
        class_name="Gemma4ForConditionalGeneration",
        outer={"vision_config": GEMMA4_VISION, "audio_config": None},
    ),
]
