"""config.json in all its spellings: what edgepack reads is what transformers computes."""

import json

import pytest
import torch
import transformers

from edgepack.checkpoint import open_checkpoint
from edgepack.decoder import Decoder
from edgepack.errors import CheckpointError
from tests.tiny import make_model

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
    ("qwen2", {"rope_parameters": {"full_attention": LINEAR}}),
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
    ("mistral", SHORT | {"layer_types": [*FULL[:1], *SLIDING[:1]]}),
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
    ("qwen3", SHORT | {"layer_types": ["chunked_attention"] * 2, "use_sliding_window": True}),
    ("qwen2", SHORT | {"layer_types": SLIDING[:1], "use_sliding_window": True}),
    # numbers that are absent, null or doubled
    ("llama", {"head_dim": ...}),
    ("llama", {"head_dim": None, "num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": ...}),
    ("llama", {"num_key_value_heads": None}),
    ("mistral", {"num_key_value_heads": ...}),
    ("qwen3", {"head_dim": ...}),
    ("qwen2", {"head_dim": 16}),
    ("llama", {"rms_norm_eps": ...}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"layer_norm_eps": 0.1}),
    ("phi", {"rms_norm_eps": 0.1}),
    ("phi", {"layer_norm_eps": 0.1}),
    ("phi", {"layer_norm_eps": ...}),
    ("opt", {"rms_norm_eps": 0.1, "layer_norm_eps": 0.1}),
    ("opt", {"head_dim": 8, "num_key_value_heads": 1}),
    ("llama", {"tie_word_embeddings": ...}),
    ("opt", {"tie_word_embeddings": ...}),
    ("llama", {"torch_dtype": "float16", "dtype": "float32"}),
    ("llama", {"n_embd": 32, "n_layer": 1, "n_head": 1, "num_layers": 1}),
    ("llama", {"pretraining_tp": 2, "attention_bias": False, "mlp_bias": False}),
    ("llama", {"quantization_config": None, "architectures": None}),
    ("llama", {"architectures": ["MistralForCausalLM"]}),
    ("llama", {"hidden_act": "gelu"}),
    ("qwen2", {"num_key_value_heads": 4}),
]


def name_of(variant):
    family, changes = variant
    return f"{family}-" + ",".join(changes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_it_is_read_as_transformers_reads_it_or_refused(tmp_path, variant, caplog):
    """Logits over 40 tokens; a window, a frequency or an epsilon that was read otherwise shows."""
    family, changes = variant
    make_model(tmp_path / "m", family, dtype=torch.float32)
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    try:
        decoder = Decoder(open_checkpoint("m", tmp_path))
    except CheckpointError as error:
        assert len(str(error)) < 300
        assert error.hint
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model(ids).logits[0]
    assert (decoder.logits(ids)[0] - wanted).abs().max() < 1e-3
