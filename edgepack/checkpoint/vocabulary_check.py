"""Whether a GGUF file's vocabulary cuts text as the source's tokenizer does, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.checkpoint import probes, special
from edgepack.checkpoint._base import Checkpoint
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.pretokenizers import CONTROL_LOOKING, USER_DEFINED_BY_NAME
from edgepack.checkpoint.probes import Difference
from edgepack.checkpoint.tokenizer import TEMPLATE
from edgepack.errors import CheckpointError
from edgepack.untrusted import quote, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BPE_STEPS = {"ByteLevel", "Split", "Digits"}
HINT = "--target onnx takes any tokenizer.json as it is"


def check(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What of the tokenizer a GGUF file changes, as warnings; `CheckpointError` where everyday text
    would get other tokens, or where llama.cpp cannot load the file."""
    fields = {key: entry[0] for key, entry in checkpoint.gguf_metadata().items()}
    return compare(fields, checkpoint.tokenizer)


def compare(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """`check`, from the keys of the file."""
    vocab = LlamaVocab(fields, "the vocabulary")
    reasons = Reasons(tokenizer)
    verdict = probes.compare(tokenizer, vocab.encode, reasons.forgives)
    if verdict.wrong:
        first = min(verdict.wrong, key=lambda difference: len(difference.text))
        raise CheckpointError(
            f"GGUF cannot hold this tokenizer: {reasons.of(first)}; {first}", hint=HINT
        )
    _check_wrapping(vocab, tokenizer)
    why = {reasons.of(difference): difference for difference in reversed(verdict.rare)}
    warnings = [f"tokenizer: {reason}; {difference}" for reason, difference in why.items()]
    return (*reversed(warnings), *_ends(fields, vocab), *_templates(fields, tokenizer))


class Reasons:
    """Why a vocabulary cuts text otherwise than the tokenizer: what GGUF has no place for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend = probes.backend_of(tokenizer)
        self._spm = bool(backend["model"].get("byte_fallback"))
        self._normalizers = [s for s in probes.steps(backend.get("normalizer")) if self._is_odd(s)]
        pre = [step["type"] for step in probes.steps(backend.get("pre_tokenizer"))]
        self._splits = [kind for kind in pre if kind != "Metaspace"] if self._spm else []
        self._metaspace = "Metaspace" in pre
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        vocab, known = tokenizer.get_vocab(), CONTROL_LOOKING | USER_DEFINED_BY_NAME
        self._by_name = sorted(known & vocab.keys() - self._added.keys())

    def _is_odd(self, step: Mapping[str, Any]) -> bool:
        """Whether a normalizer does more than write spaces as sentencepiece does."""
        return not (self._spm and step["type"] in ("Prepend", "Replace"))

    def forgives(self, text: str) -> bool:
        """Whether llama.cpp is known to cut such a text otherwise, in its own conversions too:
        plain text that is the name of a control token; special tokens that are only found in
        normalized text, as old conversions of Llama have them; where transformers' Metaspace puts no space
        before what begins with one, or follows a special token, but sentencepiece does."""
        inside = [token for content, token in self._added.items() if content in text]
        if any(map(probes.flags, inside)):
            return False
        if any(name in text for name in self._by_name):
            return True
        if any(token.special and token.normalized for token in inside) and self._spm:
            return True
        return self._metaspace and (text.startswith(" ") or bool(inside))

    def of(self, difference: Difference) -> str:
        """The likeliest reason for a difference."""
        text = difference.text
        inside = [token for content, token in self._added.items() if content in text]
        for token in inside:
            if found := probes.flags(token):
                return f"the token {_name(token.content)} has {found[0]}, which GGUF has not"
        for name in self._by_name:
            if name in text:
                return f"{_name(name)} is plain text, and a special token to llama.cpp"
        if self._metaspace and (text.startswith(" ") or inside):
            return "llama.cpp puts a space before every text and after special tokens"
        if self._normalizers:
            kinds = ", ".join(step["type"] for step in self._normalizers)
            return f"it has a normalizer ({shorten(kinds, 60)}), which GGUF has not"
        if self._splits:
            kinds = ", ".join(self._splits)
            return f"it splits text before merging ({shorten(kinds, 60)}), llama.cpp does not"
        if inside and inside[0].normalized and self._spm:
            return f"the token {_name(inside[0].content)} is normalized"
        if inside:
            return f"llama.cpp cuts text around the token {_name(inside[0].content)} otherwise"
        if self._spm:
            return "llama.cpp makes every merge that gives a token, this tokenizer does not"
        return "llama.cpp's pre-tokenizer of this kind splits text otherwise"


def _name(token: str) -> str:
    return quote(shorten(token, 40))


def _check_wrapping(vocab: LlamaVocab, tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = tokenizer.encode("a"), vocab.encode("a", special=True)
    if ours != theirs:
        raise CheckpointError(
            "GGUF cannot hold this tokenizer: its post-processor puts other tokens around a text; "
            f"{Difference('a', ours, theirs)}",
            hint=HINT,
        )


def _ends(fields: Mapping[str, Any], vocab: LlamaVocab) -> list[str]:
    """What the file does about the ends of texts and answers that people should know."""
    warnings = []
    if vocab.add_eos:
        name = quote(vocab.tokens[vocab.eos])
        warnings.append(
            f"tokenizer: it ends every text with {name}; so does llama.cpp, chat prompts too "
            "(edgepack chat does not)"
        )
    if more := fields.get(special.MORE_ENDS):
        texts = ", ".join(quote(vocab.tokens[int(index)]) for index in str(more).split())
        warnings.append(
            f"tokenizer: GGUF has a place for three tokens that end an answer, not for "
            f"{shorten(texts, 80)}; edgepack chat and the Modelfile know them, other programs do not"
        )
    if special.GGUF_ENDS[0] not in fields and vocab.eos < len(vocab.tokens):
        warnings.append(
            "tokenizer: it names no token that ends a text; llama.cpp will end answers at its "
            f"default, token {vocab.eos} ({quote(vocab.tokens[vocab.eos])})"
        )
    return warnings


def _templates(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Chat templates that chats cannot be rendered with, or that the file changes."""
    warnings = []
    given = tokenizer.chat_template
    if isinstance(given, str) and fields.get(TEMPLATE) not in (None, given):
        warnings.append(
            "tokenizer: a line before the chat template sets its bos_token or eos_token, because "
            "the file gives them other ids"
        )
    return warnings
