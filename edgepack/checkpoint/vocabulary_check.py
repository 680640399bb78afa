"""A check that the vocabulary of a GGUF file splits text as the source's tokenizer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers.models import BPE

from edgepack.checkpoint import pretokenizer_names, probes, special
from edgepack.checkpoint.base import Checkpoint
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.pretokenizers import BY_NAME
from edgepack.checkpoint.probes import Difference, Verdict
from edgepack.checkpoint.tokenizer import SPACE, TEMPLATE, byte_splits, splitting_of
from edgepack.core.untrusted import quote, shorten, whole_number
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

MARK_BEFORE = {"type": "Prepend", "prepend": SPACE}
MARK_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
"""Normalizers that write blanks as sentencepiece does."""
FORMS = frozenset(["NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"])
"""Normalizers that write the same text with other characters."""
MAX_TEXTS = 3
"""Most texts that a warning names beside the first."""
HINT = "--target onnx takes any tokenizer.json as it is"


def check(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Warnings about changes of the tokenizer in a GGUF file. `CheckpointError` if everyday text
    would get other tokens, or llama.cpp could not load the file."""
    fields = {key: entry[0] for key, entry in checkpoint.gguf_metadata().items()}
    return compare(fields, checkpoint.tokenizer)


def compare(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """`check`, for the keys of a file."""
    vocab = LlamaVocab(fields, "the vocabulary")
    reasons = Reasons(tokenizer)
    verdict = probes.compare(tokenizer, vocab.encode, reasons.excuses)
    if verdict.wrong:
        first = min(verdict.wrong, key=lambda difference: len(difference.text))
        raise CheckpointError(
            f"GGUF cannot hold this tokenizer: {reasons.explain(first)}; {first}", hint=HINT
        )
    return (
        *_differences(verdict.rare, reasons),
        *_flags(verdict, vocab, tokenizer),
        *_wrapping(vocab, tokenizer),
        *_whole_pieces(fields, reasons),
        *_ends(fields, vocab),
        *_templates(fields, tokenizer),
    )


def _differences(found: Sequence[Difference], reasons: Reasons) -> list[str]:
    """A warning for every reason, with the first text in full and some more by name."""
    texts: dict[str, list[Difference]] = {}
    for difference in found:
        texts.setdefault(reasons.explain(difference), []).append(difference)
    warnings = []
    for reason, (first, *others) in texts.items():
        names = ", ".join(quote(shorten(other.text, 24)) for other in others[:MAX_TEXTS])
        more = f" and {len(others) - MAX_TEXTS} more" if len(others) > MAX_TEXTS else ""
        also = f"; so too {names}{more}" if others else ""
        warnings.append(f"tokenizer: {reason}; {first}{also}")
    return warnings


def _flags(verdict: Verdict, vocab: LlamaVocab, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A warning about a token with flags for which no text differed; others may."""
    shown = "".join(difference.text for difference in verdict.rare)
    for token in probes.tokens_to_try(tokenizer):
        flags = probes.flags(token)
        kept = flags == ["rstrip"] and token.content in vocab.stripping
        if flags and not kept and token.content not in shown:
            return [
                f"tokenizer: the token {_name(token.content)} has {flags[0]}, which GGUF has not; "
                f"no text of {verdict.tried} differs"
            ]
    return []


class Reasons:
    """Reasons why a vocabulary splits text differently: features that GGUF cannot store."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _backend(self) -> dict[str, Any]:
        """Read only if there is a difference, because a large tokenizer takes a second."""
        return probes.backend_of(self._tokenizer)

    @cached_property
    def _spm(self) -> bool:
        return bool(self._backend["model"].get("byte_fallback"))

    @cached_property
    def _splitting(self) -> list[str]:
        return [step["type"] for step in probes.steps(self._backend.get("pre_tokenizer"))]

    @cached_property
    def _normalizers(self) -> list[str]:
        """Normalizers that do more than write spaces as sentencepiece does."""
        marks = (MARK_BEFORE, MARK_BLANKS) if self._spm else ()
        steps = probes.steps(self._backend.get("normalizer"))
        return [step["type"] for step in steps if step not in marks]

    @cached_property
    def ignores_merges(self) -> bool:
        """Whether a piece that is a token becomes that token without merges."""
        return bool(self._backend["model"].get("ignore_merges"))

    @cached_property
    def _pre_tokenizers(self) -> tuple[PreTokenizer, PreTokenizer] | None:
        """The source's pre-tokenizer and llama.cpp's of that name, if it has one."""
        own = self._tokenizer.backend_tokenizer.pre_tokenizer
        if "ByteLevel" not in self._splitting or own is None:
            return None
        splitting = BY_NAME[pretokenizer_names.find(self._tokenizer, self._backend)]
        return own, byte_splits(splitting)

    def _approximates(self, text: str) -> bool:
        """Whether llama.cpp's pre-tokenizer of the same name splits a text otherwise."""
        if self._pre_tokenizers is None:
            return False
        own, theirs = self._pre_tokenizers
        return own.pre_tokenize_str(text) != theirs.pre_tokenize_str(text)

    def _rewrites(self, text: str) -> bool:
        """Whether the source writes a text with other characters of the same meaning; llama.cpp's
        own conversions leave that out."""
        if not self._normalizers or not FORMS.issuperset(self._normalizers):
            return False
        found = self._tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        return bool(found.replace(SPACE, " ").strip(" ") != text.strip(" "))

    @cached_property
    def _added(self) -> dict[str, AddedToken]:
        return {token.content: token for token in self._tokenizer.added_tokens_decoder.values()}

    @cached_property
    def _by_name(self) -> list[str]:
        return probes.known_by_name(self._tokenizer)

    def unmerged(self) -> list[str]:
        """The tokens that merges do not make of their characters."""
        model = BPE(**_pairs(self._backend["model"]))
        tokens = self._backend["model"]["vocab"]
        return [
            token
            for token in tokens
            if token not in self._added and len(model.tokenize(token)) != 1
        ]

    def _puts_space(self, text: str, inside: list[AddedToken]) -> bool:
        """Whether sentencepiece adds a space where transformers' Metaspace does not: before a text
        that begins with one, and after special tokens."""
        return "Metaspace" in self._splitting and (text.startswith(" ") or bool(inside))

    def excuses(self, text: str) -> bool:
        """Whether llama.cpp is known to split such a text differently, even in its own conversions:
        around tokens with flags; plain text that is the name of a control token; special tokens
        that are only found in normalized text, as in old conversions of Llama; spaces that
        Metaspace omits; pre-tokenizers that llama.cpp approximates; normal forms of Unicode."""
        inside = [token for content, token in self._added.items() if content in text]
        if any(map(probes.flags, inside)):
            return text not in probes.EVERYDAY
        return (
            any(name in text for name in self._by_name)
            or (self._spm and any(token.special and token.normalized for token in inside))
            or self._puts_space(text, inside)
            or self._approximates(text)
            or self._rewrites(text)
        )

    def explain(self, difference: Difference) -> str:
        """The likeliest reason for a difference."""
        text = difference.text
        inside = [token for content, token in self._added.items() if content in text]
        for token in inside:
            if found := probes.flags(token):
                return f"the token {_name(token.content)} has {found[0]}, which GGUF has not"
        for name in self._by_name:
            if name in text:
                return f"{_name(name)} is plain text, and a special token to llama.cpp"
        if self._puts_space(text, inside):
            return "llama.cpp puts a space before every text and after special tokens"
        if self._normalizers:
            kinds = shorten(", ".join(self._normalizers), 60)
            return f"it has a normalizer ({kinds}), which GGUF has not"
        splits = [kind for kind in self._splitting if kind != "Metaspace"]
        if self._spm and splits:
            kinds = shorten(", ".join(splits), 60)
            return f"it splits text before merging ({kinds}), llama.cpp does not"
        if self._approximates(text):
            return "llama.cpp only approximates the expressions by which it splits text"
        if inside and inside[0].normalized and self._spm:
            return f"the token {_name(inside[0].content)} is looked for in normalized text"
        if inside:
            return f"llama.cpp cuts text around the token {_name(inside[0].content)} otherwise"
        if self._spm:
            return "llama.cpp makes every merge that gives a token, this tokenizer does not"
        return "llama.cpp's pre-tokenizer of this kind splits text otherwise"


def _name(token: str) -> str:
    return quote(shorten(token, 40))


def _wrapping(vocab: LlamaVocab, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A warning if the tokenizer puts more tokens around a text than llama.cpp can."""
    ours, theirs = tokenizer.encode("a"), vocab.encode("a", special=True)
    if ours == theirs:
        return []
    before, after = special.wrapping(tokenizer)
    bare = tokenizer.encode("a", add_special_tokens=False)
    difference = Difference("a", ours, theirs)
    if theirs != [*before[:1], *bare, *after[-1:]]:
        raise CheckpointError(
            "GGUF cannot hold this tokenizer: its post-processor puts other tokens around a text; "
            f"{difference}",
            hint=HINT,
        )
    lost = shorten(
        ", ".join(map(_name, tokenizer.convert_ids_to_tokens([*before[1:], *after[:-1]]))), 60
    )
    return [
        "tokenizer: llama.cpp puts at most one token before and one after a text, and leaves out "
        f"{lost} (chat templates may write them); {difference}"
    ]


def _whole_pieces(fields: Mapping[str, Any], reasons: Reasons) -> list[str]:
    """A warning about tokens that only one side finds without merges."""
    if fields["tokenizer.ggml.model"] == "llama":
        return []
    ignored = splitting_of(fields, "the vocabulary").ignore_merges
    if ignored == reasons.ignores_merges or not (tokens := reasons.unmerged()):
        return []
    here, there = ("cut", "keeps whole") if ignored else ("kept whole", "cuts")
    return [
        f"tokenizer: {len(tokens)} tokens that no merges make, {_name(tokens[0])} first, are "
        f"{here} in the source, and llama.cpp {there} them"
    ]


def _ends(fields: Mapping[str, Any], vocab: LlamaVocab) -> list[str]:
    """Warnings about the ends of texts and answers in the file."""
    warnings = []
    if vocab.add_eos and vocab.eos < len(vocab.tokens):
        name = quote(vocab.tokens[vocab.eos])
        warnings.append(
            f"tokenizer: it ends every text with {name}; so does llama.cpp, chat prompts too "
            "(edgepack chat does not)"
        )
    if more := fields.get(special.MORE_ENDS):
        known = map(whole_number, str(more).split())
        count = len(vocab.tokens)
        texts = ", ".join(quote(vocab.tokens[i]) for i in known if i is not None and i < count)
        warnings.append(
            f"tokenizer: GGUF has three places for tokens that end an answer, none for "
            f"{shorten(texts, 80)}; edgepack chat and the Modelfile know them, others do not"
        )
    if special.GGUF_ENDS[0] not in fields and vocab.eos < len(vocab.tokens):
        warnings.append(
            "tokenizer: it names no token that ends a text; llama.cpp will end answers at its "
            f"default, token {vocab.eos} ({quote(vocab.tokens[vocab.eos])})"
        )
    return warnings


def _templates(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Warnings about chat templates that cannot be rendered, or that the file changes."""
    warnings = []
    given = tokenizer.chat_template
    if isinstance(given, str) and fields.get(TEMPLATE) not in (None, given):
        warnings.append(
            "tokenizer: a line before the chat template sets its bos_token or eos_token, because "
            "the file gives them other ids"
        )
    return warnings


def _pairs(model: Mapping[str, Any]) -> dict[str, Any]:
    """Vocabulary and merges of a tokenizer.json, as the library takes them."""
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges}
