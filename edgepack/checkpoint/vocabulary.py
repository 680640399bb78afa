"""A Hugging Face tokenizer as the ``tokenizer.*`` keys of a GGUF file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from edgepack.checkpoint import pretokenizers
from edgepack.checkpoint.tokenizer import SPACE
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>")
"""Added tokens that llama.cpp's conversion makes control tokens though they are not special."""
UNMERGED = -1e6
"""Score of sentencepiece tokens that no merge makes: after everything else."""


def write(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int, config: Mapping[str, Any]
) -> None:
    """Add the tokenizer's keys to `writer`; `rows` is the length of the embedding matrix."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = backend["model"], _steps(backend)
    kinds = {step["type"] for step in steps}
    if model["type"] == "BPE" and model.get("byte_fallback"):
        _write_tokens(writer, "llama", "default", tokenizer, rows)
        writer.add_token_scores(_scores(tokenizer, model["merges"], rows))
        first = tokenizer.tokenize("a")[:1]
        writer.add_add_space_prefix(bool(first) and first[0].startswith(SPACE))
    elif model["type"] == "BPE" and "ByteLevel" in kinds:
        name = pretokenizer_name(tokenizer)
        _write_tokens(writer, "gpt2", name, tokenizer, rows)
        writer.add_token_merges([_merge(merge) for merge in model["merges"]])
        writer.add_add_space_prefix(False)
    else:
        raise CheckpointError(
            f"a {model['type']} tokenizer cannot be stored in GGUF by edgepack",
            hint="supported: byte-level BPE, and sentencepiece BPE with byte fallback",
        )
    _write_special(writer, tokenizer, config)


def pretokenizer_name(tokenizer: PreTrainedTokenizerFast) -> str:
    """``tokenizer.ggml.pre``: by llama.cpp's own test, else by the regular expressions."""
    ids = tokenizer.encode(pretokenizers.CHECK_TEXT)
    digest = hashlib.sha256(str(ids).encode()).hexdigest()
    if digest in pretokenizers.CHECK_HASHES:
        return pretokenizers.CHECK_HASHES[digest]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    found = [_pattern(step) for step in _steps(backend)]
    patterns = tuple(pattern for pattern in found if pattern is not None)
    for name, splitting in pretokenizers.SPLITTINGS.items():
        if splitting.recognises(patterns, bool(backend["model"].get("ignore_merges"))):
            return name
    raise CheckpointError(
        "llama.cpp has no name for this tokenizer's pre-tokenizer "
        f"(checksum {digest[:12]}, {len(patterns)} patterns)",
        hint="supported: the splitting of " + ", ".join(pretokenizers.SPLITTINGS),
    )


def _steps(backend: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenizers of a tokenizer.json, a sequence flattened."""
    step = backend.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps: list[dict[str, Any]] = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    return steps


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The regular expression a step splits by, in llama.cpp's spelling; None for no splitting.

    A step that has no such expression gives its own JSON, which no table contains.
    """
    match step:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return pretokenizers.GPT2
        case {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}:
            return None
        case {"type": "Digits", "individual_digits": True}:
            return r"\p{N}"
        case {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": str(regex)}}:
            any_case = f"(?i:{pretokenizers.CONTRACTION})"
            return regex.replace(any_case, pretokenizers.ANY_CASE)
    return json.dumps(step)


def _write_tokens(
    writer: GGUFWriter, model: str, pre: str, tokenizer: PreTrainedTokenizerFast, rows: int
) -> None:
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= rows:
        raise CheckpointError(
            f"the tokenizer knows {max(by_id) + 1} tokens, the embedding has {rows} rows",
            hint="tokenizer files and weights are not of the same model",
        )
    tokens, types = [], []
    for index in range(rows):
        token, kind = f"[PAD{index}]", TokenType.UNUSED
        if index in by_id:
            token, kind = _token(by_id[index], index, tokenizer, spm=model == "llama")
        tokens.append(token)
        types.append(int(kind))
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _token(
    token: str, index: int, tokenizer: PreTrainedTokenizerFast, *, spm: bool
) -> tuple[str, TokenType]:
    added = tokenizer.added_tokens_decoder.get(index)
    if spm and token == tokenizer.unk_token:
        return token, TokenType.UNKNOWN
    if added is None:
        return token, TokenType.BYTE if spm and BYTE.fullmatch(token) else TokenType.NORMAL
    if added.special or LOOKS_SPECIAL.fullmatch(token):
        return token, TokenType.CONTROL
    return token.replace(SPACE, " "), TokenType.USER_DEFINED


def _merge(merge: Any) -> str:
    """One merge as GGUF writes it: spaces inside a part in GPT-2's printable form."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", "Ġ") for part in merge)


def _scores(tokenizer: PreTrainedTokenizerFast, merges: list[Any], rows: int) -> list[float]:
    """Sentencepiece's scores, which merges were made from: minus the rank of a token's first."""
    vocab, scores = tokenizer.get_vocab(), [UNMERGED] * rows
    rank = 0
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        index = vocab.get(left + right)
        if index is not None and scores[index] == UNMERGED:
            scores[index] = -float(rank)
            rank += 1
    return scores


def _write_special(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]
) -> None:
    """Ids of the special tokens, which of them are added by themselves, the chat template."""
    for name in ("bos", "eos", "unk", "sep", "pad", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        index = config.get(f"{name}_token_id") if index is None else index
        if isinstance(index, int) and index >= 0:
            getattr(writer, f"add_{name}_token_id")(index)
    bare, full = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    writer.add_add_bos_token(full != bare and full[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(full != bare and full[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": k, "template": v} for k, v in template.items()])
    elif template:
        writer.add_chat_template(template)
