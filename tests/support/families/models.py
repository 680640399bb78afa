"""Tiny random models of the variants, saved as transformers saves them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from tests.support.families.variant import FULL, LENGTH, SLIDING, Config, Variant
from tests.support.tiny import make_tokenizer
from tests.support.vocabularies import sentencepiece

VOCABULARY = 320
GLM_TOKENS = ["[gMASK]", "<|user|>", "<|observation|>"]
SLOWER = 3.0
"""What is taken from A_log: as it is made, a state is forgotten within two tokens, what is read of
it may be next to nothing, and the norm behind blows up rounding errors."""
BUFFERS = ("layer_scalar", "expert_bias")
"""Buffers that training changes."""


def save(variant: Variant, folder: Path) -> transformers.PreTrainedModel:
    """Write config.json, model.safetensors (float32) and a tokenizer; returns transformers' model,
    with eager attention."""
    tokenizer = _tokenizer(variant.tokenizer)
    tokens = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    given = {f"{name}_token_id": index for name, index in tokens.items()}
    rows = len(tokenizer) + variant.rows
    given |= {"pad_token_id": None, "vocab_size": rows, **variant.config}
    if "hidden_size_per_layer_input" in given:
        given["vocab_size_per_layer_input"] = rows
    model_class = getattr(transformers, variant.class_name)
    config = _config(model_class.config_class, given, variant)
    config._attn_implementation = "eager"
    torch.manual_seed(zlib.crc32(variant.key.encode()) + variant.seed)
    model = model_class(config).eval()
    _randomise(model, transposed=variant.family == "gpt_oss")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if variant.tokenizer == "GPT2Tokenizer":
        _edit(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    _edit(folder / "config.json", variant.published)
    if variant.older:
        _respell(folder / "config.json")
    _add(folder / "model.safetensors", variant.passed_over)
    if variant.older or variant.published:  # what the keys mean is what transformers reads
        model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    return model.double() if variant.double else model


@torch.no_grad()
def logits(model: transformers.PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """What transformers computes, ``[time, vocab]``; in the precision of the model's weights."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def tokens(variant: Variant) -> list[int]:
    """Ids to compare models on; none is special."""
    draw = np.random.default_rng(zlib.crc32(variant.key.encode()))
    return draw.integers(8, VOCABULARY - 60, LENGTH).tolist()


def _config(
    made: type[transformers.PreTrainedConfig], given: Config, variant: Variant
) -> transformers.PreTrainedConfig:
    if variant.outer is None:
        return made(**given)
    text = {"model_type": variant.family, **given}
    return made(text_config=text, **variant.outer)


def _tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    if kind == "sentencepiece":
        return sentencepiece()
    if kind == "gemma":
        return sentencepiece(special=("<pad>", "<eos>", "<bos>", "<unk>"), prefix=False)
    found = make_tokenizer(vocab=VOCABULARY)
    if kind == "glm":
        added = [AddedToken(token, special=True) for token in GLM_TOKENS]
        found.add_tokens(added, special_tokens=True)
    return found


@torch.no_grad()
def _randomise(model: torch.nn.Module, *, transposed: bool) -> None:
    """Weights wide enough that logits are not flat and caps are reached; gains and biases a tenth
    around what they are made as (1, or 0 where the gain is 1 + γ)."""
    for name, value in model.named_parameters():
        if name.endswith("A_log"):
            value.sub_(SLOWER)
        elif value.ndim == 1:
            value.normal_(float(value.mean().round()), 0.1)
        elif name.endswith("_bias"):  # a stack of experts
            value.normal_(0.0, 0.1)
        else:
            value.normal_(0.0, _deviation(value, transposed=transposed and value.ndim == 3))
    for name, value in model.named_buffers():
        if name.endswith(BUFFERS):
            value.add_(0.1 * torch.randn_like(value))


def _deviation(value: torch.Tensor, *, transposed: bool) -> float:
    """1.5 / √inputs; gpt-oss's stacks of experts lie transposed, and wide enough for its clamp."""
    return 6.0 / value.shape[-2] ** 0.5 if transposed else 1.5 / value.shape[-1] ** 0.5


def _edit(path: Path, changes: Mapping) -> None:
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes), indent=1))


def _respell(path: Path) -> None:
    """The keys of transformers 4 for rotary positions."""
    whole = json.loads(path.read_text())
    config = whole.get("text_config", whole)
    rope = config.pop("rope_parameters")
    if FULL in rope:
        rope, local = rope[FULL], rope[SLIDING]["rope_theta"]
        if local != rope["rope_theta"]:
            config["rope_local_base_freq"] = local
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(whole, indent=1))


def _add(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if shapes:
        more = {name: torch.randn(shape) for name, shape in shapes.items()}
        save_file(load_file(path) | more, path, metadata={"format": "pt"})
