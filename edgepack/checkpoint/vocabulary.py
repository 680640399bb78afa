"""A Hugging Face tokenizer as the ``tokenizer.*`` keys of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from edgepack.checkpoint import (
    pretokenizer_names,
    pretokenizers,
    probes,
    special,
    token_names,
)
from edgepack.checkpoint.templates import DEFAULT
from edgepack.checkpoint.tokenizer import SPACE, TEMPLATE, TEMPLATE_NAMES
from edgepack.core.untrusted import quote
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>")
"""Added tokens that llama.cpp's conversion makes control tokens, although they are not special."""
SURROGATE = re.compile("[\ud800-\udfff]")
NO_NAME = re.compile(r"[^A-Za-z0-9]")
"""Characters that the name of a chat template cannot have in GGUF."""
NAME, PHI3 = "general.name", re.compile("phi[- ]?3", re.IGNORECASE)
LLAMA_CPPS_DEFAULT = 11
"""Id of BOS and EOS in llama.cpp for a byte-level vocabulary without them."""
UNMERGED = -1e6
"""Score of sentencepiece tokens that no merge makes: lower than all others."""
NO_SCORE = -1000.0
"""llama.cpp's conversion stores this for Gemma 4, whose merges are stored instead."""


def write(
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerFast,
    rows: int,
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Add the tokenizer's keys to `writer`; `rows` is the length of the embedding matrix, `config`
    and `generation` are config.json and generation_config.json."""
    backend = probes.backend_of(tokenizer)
    model, steps = backend["model"], probes.steps(backend.get("pre_tokenizer"))
    kinds = {step["type"] for step in steps}
    if model["type"] == "BPE" and model.get("byte_fallback"):
        _write_raw_pairs(writer, tokenizer, rows, backend)
    elif model["type"] == "BPE" and "ByteLevel" in kinds:
        name = pretokenizer_names.find(tokenizer, backend)
        _write_tokens(writer, "gpt2", name, tokenizer, rows)
        writer.add_token_merges([_merge(merge) for merge in model["merges"]])
        writer.add_add_space_prefix(False)
    else:
        raise CheckpointError(
            f"a {model['type']} tokenizer cannot be stored in GGUF by edgepack",
            hint="supported: byte-level BPE, and BPE with byte fallback (sentencepiece, Gemma); "
            "--target onnx takes any tokenizer.json",
        )
    _settle_name(writer, tokenizer)
    ids = _write_special(writer, tokenizer, rows, config, generation or {})
    _write_template(writer, tokenizer, ids)


def _write_raw_pairs(
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerFast,
    rows: int,
    backend: Mapping[str, Any],
) -> None:
    """Write pairs of text with ▁ for blanks: as Gemma 4's or another known splitting with its
    merges, else as a sentencepiece vocabulary with scores."""
    merges = backend["model"]["merges"]
    name = pretokenizer_names.by_checksum(tokenizer)
    if writer.arch == "gemma4":
        _write_tokens(writer, "gemma4", None, tokenizer, rows)
        writer.add_token_scores([NO_SCORE] * rows)
    elif name is not None and pretokenizers.BY_NAME[name].raw:
        _write_tokens(writer, "gpt2", name, tokenizer, rows)
    else:
        _write_tokens(writer, "llama", "default", tokenizer, rows)
        writer.add_token_scores(_scores(tokenizer, merges, rows))
        writer.add_add_space_prefix(_begins_with_space(backend))
        return
    writer.add_token_merges([_merge(merge) for merge in merges])
    writer.add_add_space_prefix(False)


def _begins_with_space(backend: Mapping[str, Any]) -> bool:
    """Whether sentencepiece's mark for a space is put before every text."""
    return any(
        step == {"type": "Prepend", "prepend": SPACE}
        or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for part in ("normalizer", "pre_tokenizer")
        for step in probes.steps(backend.get(part))
    )


def _write_tokens(
    writer: GGUFWriter, model: str, pre: str | None, tokenizer: PreTrainedTokenizerFast, rows: int
) -> None:
    known = tokenizer.get_vocab()
    by_id = {index: token for token, index in known.items()}
    if by_id and max(by_id) >= rows:
        raise CheckpointError(
            f"the tokenizer knows {max(by_id) + 1} tokens, the embedding has {rows} rows "
            f"(token {max(by_id)} is {quote(by_id[max(by_id)])})",
            hint="remove tokens that were added without resizing the embeddings, or take the "
            "tokenizer of the model",
        )
    added, unknown = tokenizer.added_tokens_decoder, tokenizer.unk_token
    tokens, types = [], []
    for index in range(rows):
        if index in by_id:
            token, kind = _token(by_id[index], added.get(index), unknown, model)
        else:
            token, kind = _filler(index, known), TokenType.UNUSED
        tokens.append(token)
        types.append(int(kind))
    _check_names(tokens, by_id)
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _token(
    token: str, added: AddedToken | None, unknown: str | None, model: str
) -> tuple[str, TokenType]:
    """A token's text and type in GGUF."""
    spm = model == "llama"
    if spm and token == unknown:
        return token, TokenType.UNKNOWN
    if added is None:
        is_byte = model != "gpt2" and BYTE.fullmatch(token)
        return token, TokenType.BYTE if is_byte else TokenType.NORMAL
    if model == "gemma4" and token in token_names.GEMMA4_VISIBLE:
        return token, TokenType.USER_DEFINED
    if added.special or LOOKS_SPECIAL.fullmatch(token):
        return token, TokenType.CONTROL
    return token.replace(SPACE, " ") if spm else token, TokenType.USER_DEFINED


def _settle_name(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let ``general.name`` say Phi-3 if and only if whitespace after special tokens is dropped as
    in Phi-3: llama.cpp knows it by that name, and cannot load other vocabularies under it."""
    added = tokenizer.added_tokens_decoder.values()
    dropping = {token.content for token in added if token.rstrip}
    others = {token.content for token in added} - dropping
    phi3 = "</s>" in dropping and others == set(token_names.NOT_STRIPPING)
    given = writer.kv_data[0].get(NAME)
    name = str(given.value) if given else ""
    says = any(part in name.lower() for part in token_names.STRIPPING_NAMES)
    if phi3 == says:
        return
    settled = PHI3.sub("Phi-3" if phi3 else "Phi 3", name)
    if phi3 and settled == name:
        settled = f"{name} (Phi-3)" if name else "Phi-3"
    if given:
        given.value = settled
    else:
        writer.add_name(settled)


def _filler(index: int, known: Mapping[str, int]) -> str:
    """An unused name for a row without a token."""
    name = f"[PAD{index}]"
    while name in known:
        name = f"[{name}]"
    return name


def _check_names(tokens: Sequence[str], by_id: Mapping[int, str]) -> None:
    """Refuse names that are not unique, or contain a NUL: llama.cpp cuts names at a NUL, and ends
    the process if they are not unique."""
    first: dict[str, int] = {}
    for index, name in enumerate(tokens):
        problem = None
        if (other := first.setdefault(name, index)) != index:
            problem = f"and token {other} {quote(by_id.get(other))} would both be {quote(name)}"
        elif "\0" in name:
            problem = "has a NUL in its name"
        elif not name:
            problem = "has no name"
        elif not name.isascii() and SURROGATE.search(name):
            problem = "has a name that is no UTF-8"
        if problem is not None:
            raise CheckpointError(
                f"token {index} {quote(by_id.get(index))} {problem} in GGUF",
                hint="remove or rename the token in tokenizer.json",
            )


def _merge(merge: Any) -> str:
    """One merge in GGUF's form: spaces inside a part are written in GPT-2's printable form."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", "Ġ") for part in merge)


def _scores(tokenizer: PreTrainedTokenizerFast, merges: list[Any], rows: int) -> list[float]:
    """Sentencepiece's scores, restored from merges: minus the rank of a token's first merge."""
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
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerFast,
    rows: int,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> dict[str, int]:
    """Write the ids of the special tokens, and which are put around every text; returns the ids.

    llama.cpp puts its BOS and EOS around a text. So the tokens that the tokenizer puts there are
    stored under these names, as in llama.cpp's conversion: the first and the last, if there are
    several.
    """
    ids = {}
    for name in ("bos", "eos", "unk", "sep", "pad", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        index = config.get(f"{name}_token_id") if index is None else index
        if isinstance(index, int) and 0 <= index < rows:
            ids[name] = index
    before, after = special.wrapping(tokenizer)
    ends = [end for end in special.ends(tokenizer, generation, config) if end < rows]
    ids |= {"bos": before[0]} if before else {}
    ids |= {"eos": after[-1]} if after else {}
    ids |= {"eos": ends[0]} if "eos" not in ids and ends else {}
    others = _unnamed_first([end for end in ends if end != ids.get("eos")], tokenizer)
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    for name, index in ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    homeless = [end for end in others[2:] if not _ends_by_name(tokenizer, end)]
    if homeless:
        writer.add_string(special.MORE_ENDS, " ".join(map(str, homeless)))
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    return ids


def _ends_by_name(tokenizer: PreTrainedTokenizerFast, index: int) -> bool:
    return tokenizer.convert_ids_to_tokens(index) in token_names.ENDS_BY_NAME


def _unnamed_first(ends: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids with those first that llama.cpp does not know by name, because GGUF has few keys."""
    return sorted(ends, key=lambda end: _ends_by_name(tokenizer, end))


def _write_template(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, ids: Mapping[str, int]
) -> None:
    """Write the chat template, or several by name, as GGUFWriter does but in a fixed order."""
    given = tokenizer.chat_template
    named = given if isinstance(given, dict) else {DEFAULT: given}
    others: dict[str, str] = {}
    for name, template in named.items():
        if not isinstance(template, str) or not template:
            continue
        stored = _naming(tokenizer, ids, template) + template
        if name == DEFAULT:
            writer.add_string(TEMPLATE, stored)
        elif others.setdefault(NO_NAME.sub("_", name), stored) is not stored:
            raise CheckpointError(
                f"the chat template {quote(name)} has the name of another one in GGUF",
                hint="names are told apart by letters and digits only",
            )
    for name, stored in sorted(others.items()):
        writer.add_string(f"{TEMPLATE}.{name}", stored)
    if others:
        writer.add_array(TEMPLATE_NAMES, sorted(others))


def _naming(tokenizer: PreTrainedTokenizerFast, ids: Mapping[str, int], template: str) -> str:
    """A line that sets ``bos_token`` or ``eos_token``, if the template reads it and the ids of the
    file would give it another text than the source."""
    lines = []
    for name in ("bos", "eos"):
        text = getattr(tokenizer, f"{name}_token") or ""
        index = ids.get(name, LLAMA_CPPS_DEFAULT)
        if f"{name}_token" in template and tokenizer.convert_tokens_to_ids(text) != index:
            lines.append(f"{{%- set {name}_token = {json.dumps(str(text))} %}}\n")
    return "".join(lines)
