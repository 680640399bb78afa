"""Llama and its nearest relatives."""

from tests.support.families.variant import (
    LINEAR,
    NO_WINDOW,
    STRETCHED,
    TIED,
    UNTIED,
    WIDE,
    WINDOW,
    YARN,
    family,
)
from tests.support.tiny import LLAMA3

llama = family("llama", "LlamaForCausalLM", UNTIED)
mistral = family("mistral", "MistralForCausalLM", {"sliding_window": None, **UNTIED})
qwen2 = family("qwen2", "Qwen2ForCausalLM", UNTIED)
qwen3 = family("qwen3", "Qwen3ForCausalLM", {**WIDE, **UNTIED})
LAST_TWO = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
BETAS = "llama.cpp reads the betas of yarn for mistral3 alone"

LLAMAS = [
    llama,
    llama.but("tied", {**TIED, **WIDE}),
    llama.but("biases", {"attention_bias": True}),
    llama.but("mlp-biases", {"mlp_bias": True}),
    llama.but("llama3", {"rope_parameters": LLAMA3, **WIDE}),
    llama.but("linear", {"rope_parameters": LINEAR}),
    llama.but("yarn", STRETCHED),
    llama.but("yarn-wide", {**STRETCHED, **WIDE}),
    llama.but("betas", {**WIDE, "rope_parameters": {**YARN, "beta_fast": 16.0}}, refused=BETAS),
    llama.but(
        "attention-factor",
        {"rope_parameters": {**YARN, "attention_factor": 0.9}},
        refused="llama.cpp does not read the key yarn_attn_factor",
    ),
    llama.but("sentencepiece", tokenizer="sentencepiece"),
    llama.but("all-heads", {"num_key_value_heads": 4}),
    llama.but("older-keys", {"rope_parameters": LLAMA3}, older=True),
    mistral,
    mistral.but("older-keys", older=True),
    mistral.but("wide", WIDE),
    mistral.but("window", {"sliding_window": WINDOW}, refused=NO_WINDOW),
    qwen2,
    qwen2.but("tied", TIED),
    qwen2.but("older-keys", older=True),
    qwen2.but("yarn", STRETCHED),
    qwen2.but("window", LAST_TWO, refused=NO_WINDOW),
    qwen3,
    qwen3.but("tied", TIED),
    qwen3.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    qwen3.but("older-keys", STRETCHED, older=True),
    qwen3.but("yarn", STRETCHED),
    qwen3.but("window", LAST_TWO, refused=NO_WINDOW),
]
