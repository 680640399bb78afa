"""Tokenizers: from a Hugging Face folder, and from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from edgepack.checkpoint.pretokenizers import BY_NAME, CONTROL_LOOKING
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"
SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
SPM_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""llama.cpp's defaults for a sentencepiece vocabulary that does not name its special tokens."""


def from_folder(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder.

    ``tokenizer.json`` is loaded as it stands: AutoTokenizer would rebuild the pre-tokenizer from
    the class named in the configuration, and so lose SmolLM2's splitting of digits.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    exact = (folder / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if exact else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its converters raise
        raise CheckpointError(
            f"{folder.name}: the tokenizer cannot be loaded ({_first_line(error)})",
            hint="the folder needs a valid tokenizer.json; to convert a tokenizer.model, "
            "pip install sentencepiece protobuf",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{folder.name}: {type(tokenizer).__name__} is not a fast tokenizer",
            hint="the folder needs a tokenizer.json",
        )
    return tokenizer


def from_gguf(fields: Mapping[str, Any], place: str) -> PreTrainedTokenizerFast:
    """The tokenizer that llama.cpp makes of a GGUF's ``tokenizer.*`` keys (key → value)."""
    from transformers import PreTrainedTokenizerFast

    model = fields.get("tokenizer.ggml.model", "")
    if model not in BACKENDS:
        raise CheckpointError(
            f"{place}: tokenizer.ggml.model is {model!r}, which edgepack cannot rebuild",
            hint="supported: " + ", ".join(BACKENDS),
        )
    tokens = _tokens(fields, place)
    backend, add_bos = BACKENDS[model](tokens, fields, place)
    types = fields.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    special, plain = _added(tokens, types)
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
        chat_template=fields.get("tokenizer.chat_template"),
        **named,
    )
    return tokenizer


def _tokens(fields: Mapping[str, Any], place: str) -> list[str]:
    """The token list; llama.cpp renames empty tokens and cannot load duplicates."""
    tokens = [
        token or f"[EMPTY_{index}]"
        for index, token in enumerate(fields.get("tokenizer.ggml.tokens", ()))
    ]
    if not tokens or len(set(tokens)) < len(tokens):
        problem = "has tokens more than once" if tokens else "is missing"
        raise CheckpointError(
            f"{place}: the list tokenizer.ggml.tokens {problem}",
            hint="llama.cpp cannot load such a file either; convert the model again",
        )
    return tokens


def _added(
    tokens: Sequence[str], types: Sequence[int]
) -> tuple[list[AddedToken], list[AddedToken]]:
    """The tokens looked for before any splitting: special ones, and plain text among them."""
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) or token in CONTROL_LOOKING:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    return special, plain


def _special_tokens(
    tokens: Sequence[str], fields: Mapping[str, Any], defaults: Mapping[str, int]
) -> dict[str, str]:
    ids = {name: fields.get(key, defaults.get(name)) for name, key in SPECIAL_IDS.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}


def _byte_level(
    tokens: Sequence[str], fields: Mapping[str, Any], place: str
) -> tuple[Tokenizer, bool]:
    """GPT-2's kind: bytes as printable characters, split by regular expressions, then merged."""
    name = fields.get("tokenizer.ggml.pre") or "default"
    if name not in BY_NAME:
        raise CheckpointError(
            f"{place}: the pre-tokenizer {name!r} is not known to edgepack",
            hint="known: " + ", ".join(sorted(BY_NAME)),
        )
    splitting = BY_NAME[name]
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
    return backend, splitting.add_bos


def _sentencepiece(
    tokens: Sequence[str], fields: Mapping[str, Any], place: str
) -> tuple[Tokenizer, bool]:
    """Sentencepiece's BPE: scores say what to merge first, unknown characters become bytes."""
    scores = fields.get("tokenizer.ggml.scores")
    if not scores or len(scores) < len(tokens):
        raise CheckpointError(
            f"{place}: a sentencepiece vocabulary without a score for every token",
            hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[fields.get(SPECIAL_IDS["unk_token"], SPM_IDS["unk_token"])]
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


def merges_of_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way of making a token from two tokens, in the order in which scores prefer them."""
    ways = [
        (-scores[index], index, vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, index in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(ways)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


BACKENDS = {"gpt2": _byte_level, "llama": _sentencepiece}
"""``tokenizer.ggml.model`` → (backend, whether llama.cpp adds BOS where the file is silent)."""
