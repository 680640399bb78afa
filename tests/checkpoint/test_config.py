"""config.json in all its spellings: what edgepack reads is what transformers computes."""

import json
import re

import pytest
import torch
import transformers

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CheckpointError
from edgepack.model.decoder import Decoder
from tests.support.tiny import make_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
NO_LENGTH = {key: LLAMA3[key] for key in list(LLAMA3)[:-1]}
SHORT = {"sliding_window": 8}
SLIDING, FULL = ["sliding_attention"] * 2, ["full_attention"] * 2

VARIANTS = [
    # rotary positions: which of two spellings counts, and what of what stands where
    ("llama", {"rope_parameters": PLAIN, "rope_scaling": LINEAR}),
    ("llama", {"rope_parameters": LINEAR, "rope_scaling": None}),
    ("llama", {"rope_parameters": LINEAR, "rope_scaling": {}}),
    ("llama", {"rope_parameters": LINEAR | {"rope_theta": 500.0}, "rope_theta": 9e4}),
    ("llama", {"rope_parameters": ..., "rope_theta": 500.0}),
    ("llama", {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": LINEAR}),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": LINEAR, "rope_theta": 7.0},
    ),
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2}}),
    ("llama", {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}),
    ("llama", {"rope_parameters": None, "rope_scaling": None, "rope_theta": 300}),
    ("llama", {"rope_parameters": PLAIN | {"factor": 3.0}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": NO_LENGTH}),
    ("llama", {"rope_parameters": NO_LENGTH, "original_max_position_embeddings": 32}),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32}),
    ("qwen2", {"rope_scaling": LLAMA3}),
    ("phi", {"rope_parameters": ..., "partial_rotary_factor": ...}),
    ("phi", {"rope_parameters": ..., "partial_rotary_factor": 0.25}),
    ("phi", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.25}}),
    (
        "phi",
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.5},
    ),
    # sliding windows: which families have one, and when
    ("mistral", SHORT),
    ("mistral", SHORT | {"use_sliding_window": False}),
    ("mistral", SHORT | {"layer_types": FULL}),
    ("mistral", SHORT | {"layer_types": SLIDING}),
    ("mistral", {"sliding_window": None, "use_sliding_window": True}),
    ("mistral", {"sliding_window": ...}),
    ("llama", SHORT),
    ("llama", SHORT | {"use_sliding_window": True, "max_window_layers": 0}),
    ("llama", SHORT | {"use_sliding_window": True, "layer_types": SLIDING}),
    ("qwen2", SHORT | {"layer_types": ...}),
    ("qwen2", SHORT | {"layer_types": SLIDING, "use_sliding_window": True}),
    ("qwen2", SHORT | {"layer_types": ..., "use_sliding_window": True, "max_window_layers": 0}),
    ("qwen2", SHORT | {"layer_types": ..., "use_sliding_window": True, "max_window_layers": 2}),
    ("qwen2", SHORT | {"layer_types": ..., "use_sliding_window": True}),
    ("qwen3", SHORT | {"layer_types": SLIDING, "use_sliding_window": True}),
    ("qwen3", SHORT | {"layer_types": FULL, "use_sliding_window": True}),
    # numbers that are absent, null or doubled
    ("llama", {"head_dim": ...}),
    ("llama", {"head_dim": None, "num_key_value_heads": 2}),
    ("qwen2", {"head_dim": 16}),
    ("llama", {"rms_norm_eps": ...}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"layer_norm_eps": 0.1}),
    ("phi", {"rms_norm_eps": 0.1}),
    ("phi", {"layer_norm_eps": 0.1}),
    ("phi", {"layer_norm_eps": ...}),
    ("opt", {"rms_norm_eps": 0.1, "layer_norm_eps": 0.1}),
    ("opt", {"head_dim": 8, "num_key_value_heads": 1}),
    ("opt", {"tie_word_embeddings": ...}),
    ("llama", {"torch_dtype": "float16", "dtype": "float32"}),
    ("llama", {"n_embd": 32, "n_layer": 1, "n_head": 1, "num_layers": 1}),
    ("llama", {"pretraining_tp": 2, "attention_bias": False, "mlp_bias": False}),
    ("llama", {"quantization_config": None, "architectures": None}),
]

REFUSED = [
    ("qwen2", {"rope_parameters": {"full_attention": LINEAR}}, "by kind of layer"),
    ("mistral", SHORT | {"layer_types": [*FULL[:1], *SLIDING[:1]]}, "only some layers"),
    (
        "qwen3",
        SHORT | {"layer_types": ["chunked_attention"] * 2, "use_sliding_window": True},
        "chunked_attention",
    ),
    ("qwen2", SHORT | {"layer_types": SLIDING[:1], "use_sliding_window": True}, "1 entries"),
    ("llama", {"num_key_value_heads": ...}, "k_proj.weight has shape"),
    ("llama", {"num_key_value_heads": None}, "k_proj.weight has shape"),
    ("mistral", {"num_key_value_heads": ...}, "8 key-value heads"),
    ("qwen3", {"head_dim": ...}, "q_proj.weight has shape"),
    ("llama", {"tie_word_embeddings": ...}, "lm_head.weight"),
    ("llama", {"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
    ("llama", {"hidden_act": "gelu"}, "gelu"),
    ("qwen2", {"num_key_value_heads": 4}, "k_proj.weight has shape"),
    ("llama", {"head_dim": 15}, "pairs"),
    ("llama", {"hidden_size": 66, "head_dim": ...}, "no multiple"),
    ("llama", {"num_key_value_heads": 3}, "3 key-value heads"),
    ("llama", {"rope_theta": None, "rope_parameters": ...}, "rope_theta"),
    ("llama", {"rope_parameters": PLAIN | {"rope_theta": None}}, "rope_theta"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ("llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ("llama", {"rope_scaling": {"rope_type": None, "factor": 4.0}}, "None"),
    ("phi", {"rope_parameters": PLAIN | {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
    ("phi", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.2}}, "pairs"),
    ("llama", {"num_hidden_layers": 50_000}, "50000 blocks"),
    ("llama", {"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
    ("llama", {"num_attention_heads": 4.0}, "num_attention_heads"),
    ("llama", {"max_position_embeddings": -1}, "max_position_embeddings"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ("phi", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ("opt", {"ffn_dim": "96"}, "ffn_dim"),
    ("llama", {"eos_token_id": "2"}, "eos_token_id"),
    ("llama", {"quantization_config": [1]}, "quantized"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "their.OtherForCausalLM"}}, "code of its own"),
    ("llama", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
]


def name_of(variant):
    family, changes, *_ = variant
    return f"{family}-" + ",".join(changes)


def change(folder, family, changes):
    """A float32 model whose config.json is changed after it was saved."""
    make_model(folder, family, dtype=torch.float32)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_it_is_read_as_transformers_reads_it(tmp_path, variant):
    """Logits over 40 tokens; a window, a frequency or an epsilon that was read otherwise shows."""
    change(tmp_path / "m", *variant)
    decoder = Decoder(open_checkpoint("m", tmp_path))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model(ids).logits[0]
    assert wanted.std() > 0.5  # a flat model would agree with anything
    assert (decoder.logits(ids)[0] - wanted).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("variant", REFUSED, ids=name_of)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, variant):
    *changed, named = variant
    change(tmp_path / "m", *changed)
    with pytest.raises(CheckpointError, match=re.escape(named)) as caught:
        open_checkpoint("m", tmp_path)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert caught.value.hint
