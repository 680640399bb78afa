"""The tokenizer that llama.cpp builds from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from edgepack.checkpoint.pretokenizers import (
    BY_NAME,
    CONTROL_LOOKING,
    USER_DEFINED_BY_NAME,
    Splitting,
)
from edgepack.checkpoint.tokenizer_files import from_folder
from edgepack.core.untrusted import quote
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["from_folder", "from_gguf"]

SPACE = "▁"
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
TEMPLATE_PREFIX = f"{TEMPLATE}."
SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
SPM_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""llama.cpp's defaults for a sentencepiece vocabulary without ids of special tokens."""


def from_gguf(fields: Mapping[str, Any], place: str) -> PreTrainedTokenizerFast:
    """The tokenizer that llama.cpp builds from a GGUF's ``tokenizer.*`` keys (key → value)."""
    from transformers import PreTrainedTokenizerFast

    model = fields.get("tokenizer.ggml.model", "")
    if model not in BACKENDS:
        raise CheckpointError(
            f"{place}: tokenizer.ggml.model is {model!r}, which edgepack cannot rebuild",
            hint="supported: " + ", ".join(BACKENDS),
        )
    tokens = names(fields, place)
    backend, add_bos = BACKENDS[model](tokens, fields, place)
    special, plain = [], []
    for token, kind in zip(tokens, kinds(tokens, fields), strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
    named = _special_tokens(tokens, fields, SPM_IDS if model == "llama" else {})
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", add_bos))
    wrap: Any = PreTrainedTokenizerFast  # an untyped class
    tokenizer: PreTrainedTokenizerFast = wrap(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        add_bos_token=add_bos and "bos_token" in named,
        add_eos_token=bool(fields.get("tokenizer.ggml.add_eos_token")) and "eos_token" in named,
        chat_template=_templates(fields),
        **named,
    )
    return tokenizer


def names(fields: Mapping[str, Any], place: str) -> list[str]:
    """The token list; llama.cpp renames empty tokens and cannot load duplicates."""
    tokens = [
        token or f"[EMPTY_{index}]"
        for index, token in enumerate(fields.get("tokenizer.ggml.tokens", ()))
    ]
    problem = "" if tokens else "is missing"
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        pairs = ((first.setdefault(token, i), i) for i, token in enumerate(tokens))
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        problem = f"has {quote(tokens[one])} more than once (ids {one} and {other})"
    if problem:
        raise CheckpointError(
            f"{place}: the list tokenizer.ggml.tokens {problem}",
            hint="llama.cpp cannot load such a file either; convert the model again",
        )
    return tokens


def kinds(tokens: Sequence[str], fields: Mapping[str, Any]) -> list[TokenType]:
    """llama.cpp's type of every token; it knows some by name and ignores their type in the file."""
    given = fields.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    if len(given) < len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.token_type has {len(given)} entries for {len(tokens)} tokens",
            hint="llama.cpp cannot load such a file either; convert the model again",
        )
    found = []
    for token, kind in zip(tokens, given, strict=False):
        if token in CONTROL_LOOKING and kind != TokenType.UNKNOWN:
            kind = TokenType.CONTROL
        elif token in USER_DEFINED_BY_NAME:
            kind = TokenType.USER_DEFINED
        found.append(kind)
    return found


def _templates(fields: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template; if there are several, all by name."""
    default = fields.get(TEMPLATE)
    named = {
        key.removeprefix(TEMPLATE_PREFIX): value
        for key, value in fields.items()
        if key.startswith(TEMPLATE_PREFIX) and isinstance(value, str)
    }
    if not named:
        return default
    return named if default is None else {"default": default, **named}


def _special_tokens(
    tokens: Sequence[str], fields: Mapping[str, Any], defaults: Mapping[str, int]
) -> dict[str, str]:
    """Texts of the special tokens; an id out of range is ignored, as in llama.cpp."""
    ids = {name: fields.get(key, defaults.get(name)) for name, key in SPECIAL_IDS.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}


def byte_level_bpe(tokens: Sequence[str], fields: Mapping[str, Any], place: str) -> Tokenizer:
    """A tokenizer like GPT-2's, without added tokens: bytes are written as printable characters,
    split by regular expressions, then merged."""
    splitting = _splitting(fields, place)
    vocab = {token: index for index, token in enumerate(tokens)}
    # The separator is the first space after the first character: a merge may begin with one.
    pairs = [
        (word[: word.find(" ", 1)], word[word.find(" ", 1) + 1 :])
        for word in fields.get("tokenizer.ggml.merges", ())
    ]
    merges = [(a, b) for a, b in pairs if a in vocab and b in vocab and a + b in vocab]
    backend = Tokenizer(BPE(vocab, merges, ignore_merges=splitting.ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _splitting(fields: Mapping[str, Any], place: str) -> Splitting:
    name = fields.get("tokenizer.ggml.pre") or "default"
    if name not in BY_NAME:
        raise CheckpointError(
            f"{place}: the pre-tokenizer {name!r} is not known to edgepack",
            hint="known: " + ", ".join(sorted(BY_NAME)),
        )
    return BY_NAME[name]


def _byte_level(
    tokens: Sequence[str], fields: Mapping[str, Any], place: str
) -> tuple[Tokenizer, bool]:
    return byte_level_bpe(tokens, fields, place), _splitting(fields, place).add_bos


def _sentencepiece(
    tokens: Sequence[str], fields: Mapping[str, Any], place: str
) -> tuple[Tokenizer, bool]:
    """Sentencepiece's BPE: scores give the order of merges, unknown characters become bytes."""
    scores = token_scores(tokens, fields, place)
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = _special_tokens(tokens, fields, SPM_IDS).get("unk_token")
    merges = merges_of_scores(vocab, scores)
    backend = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return backend, True


def token_scores(tokens: Sequence[str], fields: Mapping[str, Any], place: str) -> Sequence[float]:
    """The score of every token of a sentencepiece vocabulary."""
    scores: Sequence[float] = fields.get("tokenizer.ggml.scores") or ()
    if len(scores) < len(tokens):
        raise CheckpointError(
            f"{place}: a sentencepiece vocabulary without a score for every token",
            hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
        )
    return scores


def merges_of_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of their scores."""
    ways = [
        (-scores[index], index, vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, index in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(ways)]


BACKENDS = {"gpt2": _byte_level, "llama": _sentencepiece}
"""``tokenizer.ggml.model`` → (backend, whether llama.cpp adds BOS by default)."""
