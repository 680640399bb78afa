"""Two float32 GGUF files of one model, tensor for tensor and key for key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TYPES, SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
ONLY_OURS = {
    r"[^.]+\.vocab_size": "llama.cpp counts the tokens where it is missing",
    r"[^.]+\.attention\.(key|value)_length": "llama.cpp divides width by heads where it is missing",
    r"[^.]+\.rope\.dimension_count": "llama.cpp takes the width of a head where it is missing",
    r"[^.]+\.rope\.freq_base": "llama.cpp takes 10000 where it is missing",
    r"tokenizer\.ggml\.add_(bos|eos)_token": "said, so that nobody depends on a default",
    r"tokenizer\.ggml\.add_space_prefix": "said, so that nobody depends on a default",
    r"phi3\.rope\.scaling\.type": "the tensors of factors are enough for llama.cpp",
}
"""Patterns of keys that we may write and the converter does not,
and why that changes nothing."""
ONLY_THEIRS = {
    r"tokenizer\.ggml\.add_sep_token": "false, as where it is missing",
    r"phi3\.attention\.sliding_window": "llama.cpp ignores it",
    r"phi3\.rope\.scaling\.original_context_length": "read where there are factors alone",
    r"granite\.ssm\..*": "of a mixer that these models do not have",
    r"granite\.expert_(used_)?count": "0, as where it is missing",
    r"granite\.expert_shared_feed_forward_length": "read for models with experts alone",
    r"granite\.rope\.scaling\.finetuned": "true, as where it is missing",
}
"""The same for keys that the converter writes."""
OTHER_VALUES = {
    r"general\.file_type": "a hint for listings",
    r"general\.quantization_version": "of formats that a float file does not have",
    r"general\.name": "a description",
}


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs and is not allowed to, one line each."""
    files = [gguf.GGUFReader(path) for path in (ours, theirs)]
    return [*_tensors(*map(tensors_of, files)), *_keys(*map(keys_of, files))]


def tensors_of(file: gguf.GGUFReader) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in file.tensors}


def keys_of(file: gguf.GGUFReader) -> dict[str, Any]:
    """Values by key."""
    found = {k: f.contents() for k, f in file.fields.items() if not k.startswith("GGUF.")}
    return found


def _tensors(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = [f"tensor {name} is only {who}" for name, who in _lonely(ours, theirs)]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.tensor_type != b.tensor_type:
            found.append(f"{name}: {a.tensor_type.name}, theirs {b.tensor_type.name}")
        elif a.shape.tolist() != b.shape.tolist():
            found.append(f"{name}: {a.shape.tolist()}, theirs {b.shape.tolist()}")
        elif a.data.tobytes() != b.data.tobytes():
            found.append(f"{name}: values differ by {np.abs(a.data - b.data).max():.1e}")
    return sorted(found)


def _keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = []
    for key, who in _lonely(ours, theirs):
        if not _allowed(key, ONLY_OURS if who == "ours" else ONLY_THEIRS):
            value = str((ours if who == "ours" else theirs)[key])
            found.append(f"key {key} is only {who}: {value[:40]}")
    ours, theirs = _comparable(ours, theirs), _comparable(theirs, ours)
    for key in ours.keys() & theirs.keys():
        if not _same(ours[key], theirs[key]) and not _allowed(key, OTHER_VALUES):
            found.append(f"{key}: {str(ours[key])[:40]}, theirs {str(theirs[key])[:40]}")
    return sorted(found)


def _comparable(keys: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a vocabulary says of tokens that are no texts: llama.cpp reads no scores of
    them, and whether <unk> is unknown or control (as for Phi-3) is the same to it."""
    types = [file.get(TYPES, []) for file in (keys, others)]
    texts = [{a, b} == {NORMAL} for a, b in zip(*types, strict=False)]
    found = dict(keys) | {TYPES: [CONTROL if kind == UNKNOWN else kind for kind in types[0]]}
    if SCORES in keys:
        scores = zip(keys[SCORES], texts, strict=False)
        found[SCORES] = [score for score, is_text in scores if is_text]
    return found


def _lonely(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        *((name, "ours") for name in ours.keys() - theirs.keys()),
        *((name, "theirs") for name in theirs.keys() - ours.keys()),
    ]


def _same(ours: Any, theirs: Any) -> bool:
    """Equal; a list of equal numbers says what one number says."""
    if isinstance(theirs, list) and not isinstance(ours, list):
        return all(value == ours for value in theirs)
    return bool(ours == theirs)


def _allowed(key: str, patterns: Mapping[str, str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)
