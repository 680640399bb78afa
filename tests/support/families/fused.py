"""Families with fused projections, rotary positions in part of a head, or LayerNorms."""

from dataclasses import replace

from tests.support.families.variant import (
    EPSILON,
    LINEAR,
    NO_WINDOW,
    TIED,
    UNTIED,
    WIDE,
    WINDOW,
    Config,
    family,
)

phi3 = family(
    "phi3",
    "Phi3ForCausalLM",
    {**UNTIED, "original_max_position_embeddings": 128, "num_key_value_heads": 4},
    tokenizer="sentencepiece",
)
phi4 = replace(phi3, tokenizer="GPT2Tokenizer")


def longrope(original: int, longest: int) -> Config:
    """Phi-4-mini's rotary positions: other divisors beyond the `original` context."""
    short, long = ([1.0 + k * i for i in range(6)] for k in (0.1, 0.7))
    return {
        "max_position_embeddings": longest,
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": original,
            "short_factor": short,
            "long_factor": long,
        },
    }


GLM = {**UNTIED, "rms_norm_eps": 1e-5, "pad_token_id": 0, "eos_token_id": 2}
glm = family("glm", "GlmForCausalLM", {**GLM, "head_dim": 16}, tokenizer="glm")
glm4 = family("glm4", "Glm4ForCausalLM", {**GLM, **WIDE, "rms_norm_eps": EPSILON}, tokenizer="glm")
stablelm = family(
    "stablelm",
    "StableLmForCausalLM",
    {**UNTIED, "use_qkv_bias": True, "layer_norm_eps": EPSILON},
)
nemotron = family(
    "nemotron",
    "NemotronForCausalLM",
    {**UNTIED, "norm_eps": EPSILON},
    tokenizer="sentencepiece",
)

FUSED = [
    phi3,
    phi4.but("gpt2-tokens", {"num_key_value_heads": 2}),
    phi4.but("long", {**longrope(32, 128), **TIED, "num_key_value_heads": 2}),
    phi4.but("short", {**longrope(256, 1024), **TIED, "num_key_value_heads": 2}),
    phi4.but("older-keys", {**longrope(32, 128), "num_key_value_heads": 2}, older=True),
    phi3.but("window", {"sliding_window": WINDOW}, refused=NO_WINDOW),
    glm,
    glm.but("no-biases", {"attention_bias": False}),
    glm.but("epsilon", {"rms_norm_eps": 1.5625e-7}, converter="it always writes 1e-5"),
    glm.but("older-keys", older=True),
    glm4,
    glm4.but("older-keys", older=True),
    glm4.but("no-biases", {"attention_bias": False, **TIED}),
    stablelm,
    stablelm.but("no-biases", {"use_qkv_bias": False}),
    stablelm.but("all-heads", {"num_key_value_heads": 4}),
    stablelm.but("tied", TIED, refused="llama.cpp wants a head of its own"),
    stablelm.but("older-keys", older=True),
    nemotron,
    nemotron.but("older-keys", older=True),
    nemotron.but("biases", {"attention_bias": True, "mlp_bias": True}),
    nemotron.but("linear", {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}),
    nemotron.but("tied", TIED, refused="llama.cpp wants a head of its own"),
]
