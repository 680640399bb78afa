"""The name under which llama.cpp knows a tokenizer's pre-tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.checkpoint import pretokenizers, probes
from edgepack.checkpoint.pretokenizer_hashes import CHECK_HASHES, CHECK_TEXT
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def find(tokenizer: PreTrainedTokenizerFast, backend: Mapping[str, Any] | None = None) -> str:
    """``tokenizer.ggml.pre``: by llama.cpp's test, else by the regular expressions. `backend` is
    the tokenizer's tokenizer.json, if the caller has it.

    The expressions go before the test where they are exactly those of another name: the test's text
    does not tell all of them apart (Qwen2 and Qwen3.5 with Qwen2's vocabulary).
    """
    backend = probes.backend_of(tokenizer) if backend is None else backend
    patterns = patterns_of(backend)
    ignoring = bool(backend["model"].get("ignore_merges"))
    name, exact = by_checksum(tokenizer), _by_patterns(patterns, ignoring)
    if name is not None and (exact is None or _splits_by(name, patterns)):
        return name
    found = exact or _by_patterns(patterns, not ignoring)  # vocabulary_check says what differs
    if found is not None:
        return found
    raise CheckpointError(
        "llama.cpp has no name for this tokenizer's pre-tokenizer "
        f"(checksum {_digest(tokenizer)[:12]}, {len(patterns)} patterns)",
        hint="supported: the splitting of " + ", ".join(pretokenizers.SPLITTINGS),
    )


def _by_patterns(patterns: tuple[str, ...], ignoring: bool) -> str | None:
    """The first name with these expressions."""
    splittings = pretokenizers.SPLITTINGS.items()
    known = (n for n, s in splittings if not s.raw and s.recognises(patterns, ignoring))
    return next(known, None)


def _splits_by(name: str, patterns: tuple[str, ...]) -> bool:
    splitting = pretokenizers.BY_NAME[name]
    return any(splitting.recognises(patterns, ignoring) for ignoring in (True, False))


def by_checksum(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The name that llama.cpp's conversion finds by the ids of a text; None for other models."""
    name = CHECK_HASHES.get(_digest(tokenizer))
    return name if name in pretokenizers.BY_NAME else None  # the others are of no byte pairs


def _digest(tokenizer: PreTrainedTokenizerFast) -> str:
    ids = tokenizer.encode(CHECK_TEXT)
    return hashlib.sha256(str(ids).encode()).hexdigest()


def patterns_of(backend: Mapping[str, Any]) -> tuple[str, ...]:
    """The regular expressions by which a tokenizer.json splits text, one after the other."""
    found = [_pattern(step) for step in probes.steps(backend.get("pre_tokenizer"))]
    return tuple(pattern for pattern in found if pattern is not None)


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The regular expression that a step splits by, in llama.cpp's spelling; None for no splitting.

    For a step without such an expression, its JSON, which no table contains.
    """
    match step:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return pretokenizers.GPT2
        case {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}:
            return None
        case {"type": "Digits", "individual_digits": bool(each)}:
            return pretokenizers.DIGIT if each else pretokenizers.DIGITS
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return pretokenizers.PUNCTUATION
        case {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": str(regex)}}:
            return regex
        case {"type": "Split", "behavior": "Removed", "invert": True, "pattern": {"Regex": regex}}:
            return str(regex)  # only what lies between matches is removed: nothing, in the tables
    return json.dumps(step)
