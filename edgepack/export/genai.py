"""genai_config.json, which gives onnxruntime-genai the names of the graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepack.checkpoint import Checkpoint, special

TYPES = (
    *("ernie4_5", "gemma2", "gemma3_text", "granite", "llama", "mistral", "phi", "qwen2", "qwen3"),
    "smollm3",
)
"""Families that it knows; for a decoder, all of them work in the same way, so that others are
called llama. (So is phi3: there genai computes everything again at the 4097th token, for graphs
that change their rotary divisors.)"""


def genai_config(
    checkpoint: Checkpoint, model: Path, inputs: Sequence[str], context: int
) -> dict[str, Any]:
    """The configuration of a graph in a subfolder of the output folder; `inputs` are its inputs
    besides keys and values."""
    d, tokenizer, name = checkpoint.dimensions, checkpoint.tokenizer, checkpoint.architecture.name
    ends = list(special.ends(tokenizer, checkpoint.generation_config()))
    pad = tokenizer.pad_token_id
    first = ends[0] if ends else pad
    past = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in ("key", "value")}
    present = {f"present_{kind}_names": f"present.%d.{kind}" for kind in ("key", "value")}
    decoder = {
        "filename": f"{model.parent.name}/{model.name}",
        "head_size": d.head_dim,
        "hidden_size": d.hidden_size,
        "num_attention_heads": d.num_attention_heads,
        "num_key_value_heads": d.num_key_value_heads,
        "num_hidden_layers": d.num_hidden_layers,
        "inputs": {key: key for key in inputs} | past,
        "outputs": {"logits": "logits"} | present,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
    }
    return {
        "model": {
            "type": name if name in TYPES else "llama",
            "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else first,
            "eos_token_id": ends if len(ends) > 1 else first,
            "pad_token_id": first if pad is None else pad,
            "context_length": context,
            "vocab_size": d.vocab_size,
            "decoder": decoder,
        },
        "search": {"max_length": context, "do_sample": False, "past_present_share_buffer": False},
    }
