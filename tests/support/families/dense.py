"""Families that differ from Llama in a few facts."""

from tests.support.families.variant import (
    DEFAULT,
    FULL,
    NO_WINDOW,
    SLIDING,
    STRETCHED,
    TIED,
    UNTIED,
    WIDE,
    WINDOW,
    YARN,
    family,
)
from tests.support.tiny import LLAMA3

smollm3 = family("smollm3", "SmolLM3ForCausalLM", {**TIED, "num_hidden_layers": 5})
ministral3 = family(
    "ministral3",
    "Ministral3ForCausalLM",
    {
        **WIDE,
        **UNTIED,
        "rope_parameters": {
            **YARN,
            "original_max_position_embeddings": 16,
            "beta_fast": 1.2,
            "beta_slow": 0.4,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
)
PIXTRAL = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
PIXTRAL |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SCALES = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.15,
    "logits_scaling": 4.0,
}
granite = family("granite", "GraniteForCausalLM", {**SCALES, **UNTIED})
granite4 = family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    {
        **SCALES,
        **TIED,
        "layer_types": [FULL] * 4,
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
    },
    published={"layer_types": ["attention"] * 4},
)
SPELLING = "the converter knows the older spelling of layer_types alone"
ernie = family("ernie4_5", "Ernie4_5ForCausalLM", {**TIED, **WIDE}, tokenizer="sentencepiece")
olmo2 = family("olmo2", "Olmo2ForCausalLM", UNTIED)
OLMO3_KINDS = [SLIDING, SLIDING, SLIDING, FULL, SLIDING]
olmo3 = family(
    "olmo3",
    "Olmo3ForCausalLM",
    {
        **UNTIED,
        "num_hidden_layers": 5,
        "layer_types": OLMO3_KINDS,
        "sliding_window": WINDOW,
        "rope_parameters": {FULL: DEFAULT, SLIDING: DEFAULT},
    },
)
SLOW = {**DEFAULT, "rope_theta": YARN["rope_theta"]}
USUAL = {"rope_theta": 500000.0}
OLMO3_OLDER = {"rope_parameters": {FULL: YARN | USUAL, SLIDING: DEFAULT | USUAL}}
"""With older keys, transformers reads the usual theta for sliding blocks, whatever is said."""
OLMO3_YARN = {"rope_parameters": {FULL: YARN, SLIDING: SLOW}, "max_position_embeddings": 3896}
exaone4 = family(
    "exaone4", "Exaone4ForCausalLM", {**TIED, "sliding_window": None, "layer_types": [FULL] * 4}
)
hunyuan = family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", {**TIED, **WIDE})
seed_oss = family("seed_oss", "SeedOssForCausalLM", {**UNTIED, **WIDE})
arcee = family("arcee", "ArceeForCausalLM", {**UNTIED, **WIDE})

FEW_FACTS = [
    smollm3,
    smollm3.but("untied", UNTIED),
    smollm3.but(
        "rope-everywhere", {"no_rope_layers": [1] * 5}, refused="every 4th block is hard-coded"
    ),
    smollm3.but("every-2nd", {"no_rope_layer_interval": 2}, refused="every 4th is hard-coded"),
    smollm3.but(
        "window",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": [FULL, FULL, FULL, SLIDING, FULL],
        },
        refused=NO_WINDOW,
    ),
    smollm3.but("yarn", STRETCHED),
    smollm3.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    smollm3.but("older-keys", older=True),
    ministral3,
    ministral3.but("tied", TIED),
    ministral3.but(
        "two-mscales",
        {"rope_parameters": {**ministral3.config["rope_parameters"], "mscale": 0.7}},
        refused="llama.cpp knows mscale_all_dim alone",
    ),
    ministral3.but(
        "wrapped",
        class_name="Mistral3ForConditionalGeneration",
        outer={"vision_config": PIXTRAL, "tie_word_embeddings": False},
    ),
    granite,
    granite.but("tied", TIED),
    granite.but("biases", {"attention_bias": True, "mlp_bias": True}),
    granite.but("older-keys", older=True),
    granite4,
    granite4.but("untied", UNTIED),
    granite4.but("new-spelling", published={}, converter=SPELLING),
    granite4.but("no-rope", {"position_embedding_type": "nope"}, refused="it is always rotated"),
    granite4.but("older-keys", older=True),
    ernie,
    ernie.but("untied", UNTIED),
    ernie.but("biases", {"use_bias": True}, refused="no place for biases of the MLP"),
    ernie.but("older-keys", older=True),
    olmo2,
    olmo2.but("all-heads", {"num_key_value_heads": 4}),
    olmo2.but("tied", TIED, refused="llama.cpp wants a head of its own"),
    olmo2.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    olmo2.but("older-keys", older=True),
    olmo3,
    olmo3.but("yarn", OLMO3_YARN),
    olmo3.but(
        "two-thetas",
        {"rope_parameters": {FULL: {**DEFAULT, "rope_theta": 500.0}, SLIDING: DEFAULT}},
        refused="llama.cpp takes one theta for all blocks",
    ),
    olmo3.but("older-keys", OLMO3_OLDER, older=True),
    exaone4,
    exaone4.but("untied", {**UNTIED, "num_key_value_heads": 4}),
    exaone4.but("llama3", {"rope_parameters": LLAMA3}),
    exaone4.but(
        "window",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
        refused="windows and blocks without rope are hard-coded for 64 blocks",
    ),
    exaone4.but(
        "64-blocks",
        {
            "num_hidden_layers": 64,
            "intermediate_size": 32,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 16,
        },
    ),
    exaone4.but("older-keys", {"rope_parameters": LLAMA3}, older=True),
    hunyuan,
    hunyuan.but("untied", UNTIED),
    hunyuan.but(
        "alpha",
        {
            "max_position_embeddings": 32768,
            "rope_parameters": {**DEFAULT, "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0},
        },
    ),
    hunyuan.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    seed_oss,
    seed_oss.but("tied", TIED),
    seed_oss.but("no-biases", {"attention_bias": False}),
    seed_oss.but("output-bias", {"attention_out_bias": True}, refused="no place for the bias"),
    seed_oss.but("mlp-biases", {"mlp_bias": True}, refused="no place for the biases"),
    seed_oss.but("older-keys", older=True),
    arcee,
    arcee.but("tied", TIED),
    arcee.but("biases", {"attention_bias": True}, refused="no place for the output's bias"),
    arcee.but("mlp-biases", {"mlp_bias": True}, refused="no place for the biases"),
    arcee.but("older-keys", STRETCHED, older=True),
    arcee.but("yarn", STRETCHED),
]
