"""Texts that tokenizers often split differently, and a comparison of two tokenizers on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.checkpoint import special
from edgepack.checkpoint.templates import TemplateError
from edgepack.checkpoint.token_names import CONTROL_LOOKING, USER_DEFINED_BY_NAME
from edgepack.core.untrusted import quote, shorten

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

EVERYDAY = (
    "", " ", "  ", "   ", "the", " the", "  the  then", "the the", "Hello", "HELLO World", "hello",
    "0", "12", "123456", "1234567 98", "3.14159 2,718", "in 1969, 384400 km", "a1b22c333",
    "It's we'll they've I'm you'd", "'tis ''quoted'' \"x\"", "I'VE CAN'T WE'LL",
    "\n", "\n\n", "\n\n\nx", " \n \t x", "a\r\nb", "\t\tprint(i)", "x  \n\n  y   z", "tail  ",
    "    return left + right  # sum\n", "x=y+z; a[b]{c}<d>|e", "--==>>~~$$++``^^||",
    "a,b.c!d?e:f;g", "snake_case __init__", "https://example.org/a?b=c&d=%20#e",
    "CamelCase HTTPServer mixedCase", "renewal the therefore others", "....!!!???",
    "a" * 40, "ab" * 20, " " * 20 + "x", "\n" * 9,
    "Größe, Straße, señor, où est passée la clé?", "Über Änderungen ÉTÉ", "Сегодня холодный вечер.",
    "Ελληνικά κείμενα", "今日は天気がいい。", "你好，世界！“引号”…", "오늘 날씨가 좋다.",
    "שלום עולם", "مرحبا بالعالم", "हिन्दी में", "ไทย", "½ ² ™ … ﹪ ｆｕｌｌ", "🤗 🏳️‍🌈 👍🏽",
    "".join(map(chr, range(33, 256))), "<b>bold</b> &amp; {{x}} [INST] <|x|>",
)  # fmt: skip
"""Everyday texts: a tokenizer that splits them differently is another tokenizer …"""
RARE = (
    "e\u0301 a\u0308 n\u0303", "\u1100\u1161", "\ufb01 \u212b \u2126", "ſ ẞ İ ı ǅ",
    "a\u00a0x\u3000y\u200bz\ufeff", "ÉCOLEécole ÜBERüber", "\u2028\x85\x0b\x0c\x1c", "\x01\x02\x7f",
    "a\u2581b \u2581\u2581 c", "\U00010348\U0001d54f", "\ufffd", "١٢٣ Ⅷ ¼",
)  # fmt: skip
"""… and rare texts, which llama.cpp's own conversions of common models get wrong."""
AROUND = ("{}", "a{}b", " {} ", "a {} b", "{}{}", "{}\n", "\n\n{}x", "1{}2", "{} the", "the {}")
"""Contexts in which added tokens are tried: between letters, spaces, line ends, and each other."""
MAX_ADDED = 48
"""Most added tokens that are tried; those with flags come first."""
FLAGS = ("lstrip", "rstrip", "single_word")

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Difference:
    """A text with different ids: those of the source, and those of the runtime or the file."""

    text: str
    source: Sequence[int]
    other: Sequence[int]

    def __str__(self) -> str:
        here = next(
            (i for i, (a, b) in enumerate(zip(self.source, self.other, strict=False)) if a != b),
            min(len(self.source), len(self.other)),
        )
        start, dots = (here - 1, "…, ") if here > 2 else (0, "")
        source, other = (
            f"[{dots}{', '.join(map(str, ids[start : start + 4]))}"
            f"{', …' if len(ids) > start + 4 else ''}]"
            for ids in (self.source, self.other)
        )
        return f"{quote(shorten(self.text, 32))} is {source} in the source, {other} there"


@dataclass(frozen=True)
class Verdict:
    """`wrong`: differences in everyday texts; `rare`: differences in rare texts; `tried`: the
    number of texts."""

    wrong: tuple[Difference, ...] = ()
    rare: tuple[Difference, ...] = ()
    tried: int = 0


def compare(
    tokenizer: PreTrainedTokenizerFast, other: Encode, excused: Callable[[str], bool]
) -> Verdict:
    """Encode all texts with both tokenizers, without the tokens put around a text. Differences in
    texts that are `excused` count as rare."""
    wrong: list[Difference] = []
    rare: list[Difference] = []
    tried = 0
    for text, everyday in texts(tokenizer):
        tried += 1
        ours = tokenizer.encode(text, add_special_tokens=False)
        theirs = other(text)
        if ours != theirs:
            (wrong if everyday and not excused(text) else rare).append(
                Difference(text, ours, theirs)
            )
    return Verdict(tuple(wrong), tuple(rare), tried)


def texts(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, bool]]:
    """The texts to try, and whether they are everyday ones."""
    yield from ((text, True) for text in EVERYDAY)
    if (chat := _chat(tokenizer)) is not None:
        yield chat, True
    for token in tokens_to_try(tokenizer):
        yield from ((form.format(*[token.content] * 2), True) for form in AROUND)
    yield from ((text, False) for text in RARE)
    yield from ((f"a {name} b", False) for name in known_by_name(tokenizer))


def _chat(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """A question and its answer in the chat template, if there is one that can be used."""
    try:
        turns = special.turns(tokenizer)
    except TemplateError:
        return None
    return turns and f"{turns.before}How are you?{turns.between}I'm well.{turns.after}"


def tokens_to_try(tokenizer: PreTrainedTokenizerFast) -> list[AddedToken]:
    """Added tokens to try: those with flags, then plain ones, then special ones."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted(added, key=lambda t: (not flags(t), t.special))[:MAX_ADDED]


def known_by_name(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Plain tokens that llama.cpp finds whole in any text because of their names."""
    known = (CONTROL_LOOKING | USER_DEFINED_BY_NAME) & tokenizer.get_vocab().keys()
    return sorted(known - {token.content for token in tokenizer.added_tokens_decoder.values()})


def flags(token: AddedToken) -> list[str]:
    """The flags of an added token that GGUF cannot store."""
    return [flag for flag in FLAGS if getattr(token, flag)]


def steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of a tokenizer.json, with sequences flattened."""
    if not part:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    if part["type"] != "Sequence":
        return [part]
    return [step for each in inner or () for step in steps(each)]


def backend_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer's tokenizer.json."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found
