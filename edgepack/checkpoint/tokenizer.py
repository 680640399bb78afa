"""The tokenizer that llama.cpp builds from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from edgepack.checkpoint import token_names
from edgepack.checkpoint.pretokenizers import BY_NAME, Splitting
from edgepack.checkpoint.tokenizer_files import from_folder
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["from_folder", "from_gguf"]

SPACE = "▁"
FOUND_WHOLE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
"""Types of tokens that are looked for in the text before it is split."""
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
NOT_REBUILT = {
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV's",
    "plamo2": "PLaMo's",
    "whitespace": "one of whole words",
    "hybriddna": "one of DNA",
    "none": "none at all",
    "no_vocab": "none at all",
}
"""Other values of ``tokenizer.ggml.model`` in llama.cpp."""


def from_gguf(fields: Mapping[str, Any], place: str) -> PreTrainedTokenizerFast:
    """The tokenizer that llama.cpp builds from a GGUF's ``tokenizer.*`` keys (key → value)."""
    from transformers import PreTrainedTokenizerFast

    model = fields.get("tokenizer.ggml.model", "")
    if model not in BACKENDS:
        known = f" ({NOT_REBUILT[model]})" if model in NOT_REBUILT else ""
        raise CheckpointError(
            f"{place}: tokenizer.ggml.model is {quote(model)}{known}, which edgepack cannot "
            "rebuild",
            hint="supported: " + ", ".join(BACKENDS),
        )
    tokens = names(fields, place)
    backend = BACKENDS[model](tokens, fields, place)
    stripping = stripping_tokens(tokens, fields, place)
    special, plain = [], []
    for token, kind in zip(tokens, kinds(tokens, fields), strict=True):
        rstrip = token in stripping
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False, rstrip=rstrip))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False, rstrip=rstrip))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
    named = _special_tokens(tokens, fields, SPM_IDS if model == "llama" else {})
    add_bos = adds_bos(fields, place)
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
    known = set(tokens)
    found = []
    for token, kind in zip(tokens, given, strict=False):
        if _beside(token, known, token_names.TEXT_BESIDE):
            kind = TokenType.NORMAL
        elif _beside(token, known, token_names.MATCHED_BESIDE):
            kind = TokenType.USER_DEFINED
        elif token in token_names.CONTROL_LOOKING and kind != TokenType.UNKNOWN:
            kind = TokenType.CONTROL
        elif token in token_names.USER_DEFINED_BY_NAME:
            kind = TokenType.USER_DEFINED
        found.append(kind)
    return found


def _beside(
    token: str, known: AbstractSet[str], table: Mapping[str, tuple[frozenset[str], ...]]
) -> bool:
    """Whether one of the sets of tokens that `table` has for this token is known."""
    return any(others <= known for others in table.get(token, ()))


def stripping_tokens(
    tokens: Sequence[str], fields: Mapping[str, Any], place: str
) -> frozenset[str]:
    """The tokens after which llama.cpp drops whitespace, because of the model's name."""
    name = str(fields.get("general.name", "")).lower()
    if not any(part in name for part in token_names.STRIPPING_NAMES):
        return frozenset()
    known = set(tokens)
    for needed in ("</s>", *token_names.NOT_STRIPPING):
        if needed not in known:
            raise CheckpointError(
                f"{place}: general.name is {quote(shorten(name, 40))}, and there is no token "
                f"{needed}; llama.cpp cannot load a Phi-3 without it",
                hint="give the model another name",
            )
    whole = {
        token
        for token, kind in zip(tokens, kinds(tokens, fields), strict=True)
        if kind in FOUND_WHOLE or token == "</s>"
    }
    return frozenset(whole - set(token_names.NOT_STRIPPING))


def adds_bos(fields: Mapping[str, Any], place: str) -> bool:
    """Whether llama.cpp puts BOS before every text."""
    if fields.get("tokenizer.ggml.model") == "llama":
        default = True
    else:
        splitting = splitting_of(fields, place)
        if splitting.always_bos:
            return True
        default = splitting.add_bos
    return bool(fields.get("tokenizer.ggml.add_bos_token", default))


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


def byte_pairs(tokens: Sequence[str], fields: Mapping[str, Any], place: str) -> Tokenizer:
    """A byte-pair tokenizer without added tokens: expressions split the text, merges join it.

    Characters are UTF-8 bytes, written as printable characters (GPT-2); or, if the splitting is
    `raw`, the text itself with ▁ for blanks (Gemma 4).
    """
    splitting = splitting_of(fields, place)
    vocab = {token: index for index, token in enumerate(tokens)}
    # The separator is the first space after the first character: a merge may begin with one.
    pairs = [
        (word[: word.find(" ", 1)], word[word.find(" ", 1) + 1 :])
        for word in fields.get("tokenizer.ggml.merges", ())
    ]
    merges = [(a, b) for a, b in pairs if a in vocab and b in vocab and a + b in vocab]
    backend = Tokenizer(
        BPE(
            vocab,
            merges,
            ignore_merges=splitting.ignore_merges,
            byte_fallback=splitting.raw,
        )
    )
    backend.pre_tokenizer = byte_splits(splitting)
    if splitting.raw:
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        backend.decoder = decoders.ByteLevel()
    return backend


def byte_splits(splitting: Splitting) -> pre_tokenizers.Sequence:
    """The pre-tokenizer of a splitting."""
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(splits if splitting.raw else [*splits, last])


def splitting_of(fields: Mapping[str, Any], place: str) -> Splitting:
    """How llama.cpp splits text before it merges pairs."""
    gemma4 = fields.get("tokenizer.ggml.model") == "gemma4"
    name = "gemma4" if gemma4 else fields.get("tokenizer.ggml.pre") or "default"
    if name not in BY_NAME:
        raise CheckpointError(
            f"{place}: the pre-tokenizer {quote(shorten(str(name), 40))} is not known to edgepack",
            hint="known: " + ", ".join(sorted(BY_NAME)),
        )
    return BY_NAME[name]


def _sentencepiece(tokens: Sequence[str], fields: Mapping[str, Any], place: str) -> Tokenizer:
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
    return backend


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


BACKENDS = {"gpt2": byte_pairs, "gemma4": byte_pairs, "llama": _sentencepiece}
"""``tokenizer.ggml.model`` → what builds the backend."""
