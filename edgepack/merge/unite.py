"""The tokens of several tokenizers in one tokenizer.json.

The first tokenizer keeps its ids, merges and rules of splitting. New tokens of the others follow,
in the order of the inputs and of their ids: pieces with their merges (BPE) or scores (Unigram),
added tokens with their flags. Merges of the first come first. So its texts are split as before,
except where a new merge joins two pieces that it left apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.checkpoint import probes
from edgepack.checkpoint.tokenizer import SPACE
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.merge.vocabulary import Vocabulary

Content = Mapping[str, Any]
"""A tokenizer.json."""
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class United:
    """`ids` of all tokens; `content`: their tokenizer.json, None if there are no new tokens."""

    ids: Mapping[str, int]
    content: Content | None
    warnings: tuple[str, ...] = ()


def unite(
    first: Vocabulary, others: Sequence[Vocabulary], named: Mapping[str, Content] | None = None
) -> United:
    """The tokens of `first`, of the `others`, and the added tokens that are `named` (text → flags).

    `RecipeError` names the difference if the others' pieces mean something else than the first's.
    """
    ids = dict(first.ids)
    pieces: dict[str, Vocabulary] = {}
    added: dict[str, Content] = {}
    warnings: list[str] = []
    following = max(ids.values()) + 1
    for other in others:
        new = [token for token in other.ids if token not in ids and other.row(token) is not None]
        for token in new:
            ids[token], following = following, following + 1
            if token in other.added:
                added[token] = other.added[token]
            else:
                pieces[token] = other
        if any(pieces.get(token) is other for token in new):
            _refuse(first, other)
        warnings += [*_splitting(first, other), *_flags(first, other)]
    for token, flags in (named or {}).items():
        if token not in ids:
            ids[token], following = following, following + 1
            added[token] = flags
    if len(ids) == len(first.ids):
        return United(ids, None, tuple(warnings))
    model = first.content["model"]
    entries = [
        {**dict.fromkeys(FLAGS, False), **flags, "content": token, "id": ids[token]}
        for token, flags in added.items()
    ]
    content = {
        **first.content,
        "model": _with_pieces(model, ids, pieces) if pieces else model,
        "added_tokens": [*first.content["added_tokens"], *entries],
    }
    return United(ids, content, tuple(warnings))


def _with_pieces(
    model: Content,
    ids: Mapping[str, int],
    pieces: Mapping[str, Vocabulary],
) -> Content:
    """The model of a tokenizer.json with all `ids`, the added tokens' too: tokenizers numbers those
    anew that the model does not know."""
    if model["type"] == "Unigram":
        return {**model, "vocab": _scored(model, ids, pieces)}
    if model["type"] != "BPE":
        return {**model, "vocab": dict(ids)}
    merges = {_pair(merge): None for merge in model["merges"]}
    prefix = model.get("continuing_subword_prefix") or ""
    for other in dict.fromkeys(pieces.values()):
        for left, right in map(_pair, other.content["model"]["merges"]):
            if {left, right, left + right.removeprefix(prefix)} <= ids.keys():
                merges.setdefault((left, right))
    return {**model, "vocab": dict(ids), "merges": [list(merge) for merge in merges]}


def _scored(
    model: Content,
    ids: Mapping[str, int],
    pieces: Mapping[str, Vocabulary],
) -> list[list[Any]]:
    """Pieces with their scores, in the order of ids. Added tokens get the lowest score; they are
    cut out of a text before."""
    owners = dict.fromkeys(pieces.values())
    scores = {token: score for v in owners for token, score in v.content["model"]["vocab"]}
    known = dict(map(tuple, model["vocab"]))
    lowest = min(known.values())
    wanted = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in wanted] != list(range(len(wanted))):
        raise RecipeError(
            "tokenizer: a Unigram vocabulary whose ids have gaps cannot be extended",
            hint="write tokenizer_source: base, or name another base",
        )
    return [
        [token, known.get(token, scores[token] if token in pieces else lowest)] for token in wanted
    ]


def _pair(merge: Any) -> tuple[str, str]:
    """A merge, which old files write as one text."""
    if isinstance(merge, str):
        cut = merge.find(" ", 1)
        return merge[:cut], merge[cut + 1 :]
    left, right = merge
    return left, right


def alphabet(content: Content) -> str:
    """How pieces write text."""
    kinds = {
        step["type"] for part in ("pre_tokenizer", "decoder") for step in _steps(content, part)
    }
    if "ByteLevel" in kinds:
        return "bytes as printable characters"
    if SPACE in json.dumps([content.get("normalizer"), content.get("decoder")], ensure_ascii=False):
        return f"characters, {SPACE} for a space"
    return f"characters, {SPACE} for a space" if "Metaspace" in kinds else "characters"


def _normalizer(content: Content) -> str:
    """The steps that do more than write spaces as sentencepiece does."""
    steps = [
        s for s in _steps(content, "normalizer") if SPACE not in json.dumps(s, ensure_ascii=False)
    ]
    return _text(steps) if steps else "none"


def _of_model(key: str) -> Callable[[Content], str]:
    return lambda content: _text(content["model"].get(key) or None)


MEANING: Mapping[str, Callable[[Content], str]] = {
    "the kind of vocabulary": _of_model("type"),
    "the alphabet": alphabet,
    "byte_fallback": _of_model("byte_fallback"),
    "the prefix of continued words": _of_model("continuing_subword_prefix"),
    "the ending of words": _of_model("end_of_word_suffix"),
    "the normalizer": _normalizer,
}
"""What two tokenizers must agree in for pieces of one to be pieces of the other."""
SPLITTING: Mapping[str, Callable[[Content], str]] = {
    "the normalizer": lambda content: _text(_steps(content, "normalizer")),
    "the pre-tokenizer": lambda content: _text(_steps(content, "pre_tokenizer")),
    "the post-processor": lambda content: _text(content.get("post_processor")),
    "ignore_merges": _of_model("ignore_merges"),
}
"""What the first decides for all."""


def _refuse(first: Vocabulary, other: Vocabulary) -> None:
    """Raise at the first difference in what pieces mean."""
    for what, read in MEANING.items():
        ours, theirs = read(first.content), read(other.content)
        if ours != theirs:
            raise RecipeError(
                f"tokenizer: {what} differs, so the tokenizers of {shorten(first.model, 60)} and "
                f"{shorten(other.model, 60)} cannot be united: {shorten(ours, 80)}; "
                f"{shorten(theirs, 80)}",
                hint="write tokenizer_source: base, or the name of one model",
            )


def _splitting(first: Vocabulary, other: Vocabulary) -> list[str]:
    """Warnings about rules of the other tokenizer that are not used."""
    lost = [what for what, read in SPLITTING.items() if read(first.content) != read(other.content)]
    if not lost:
        return []
    return [
        f"tokenizer: {' and '.join(lost)} of {shorten(other.model, 60)} differs; that of "
        f"{shorten(first.model, 60)} is used"
    ]


def _flags(first: Vocabulary, other: Vocabulary) -> list[str]:
    """A warning about tokens that are added, or special, in one of the two only."""
    both = [token for token in other.ids if token in first.ids]
    odd = [
        token
        for token in both
        if _flags_of(first.added.get(token)) != _flags_of(other.added.get(token))
    ]
    if not odd:
        return []
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return [
        f"tokenizer: {quote(shorten(odd[0], 30))}{more} is found in a text by other rules in "
        f"{shorten(other.model, 60)}; those of {shorten(first.model, 60)} are used"
    ]


def _flags_of(entry: Content | None) -> tuple[Any, ...] | None:
    return None if entry is None else tuple(entry[flag] for flag in FLAGS)


def _steps(content: Content, part: str) -> list[dict[str, Any]]:
    found = content.get(part)
    if found and "decoders" in found:
        return list(found["decoders"])
    return probes.steps(found)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if value else "none"
