"""A conversation with any runtime; the answer is yielded as text while it is generated."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgepack.checkpoint import templates
from edgepack.runtimes.base import LIKELIEST, Runtime, Sampling


def chat(
    runtime: Runtime,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int = 256,
    sampling: Sampling = LIKELIEST,
) -> Iterator[str]:
    """The model's answer to messages ``{"role": …, "content": …}``, in whole characters."""
    answer = runtime.generate(prompt(runtime, messages), max_tokens, sampling)
    return text(runtime.piece(token) for token in answer)


def prompt(runtime: Runtime, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of the messages, up to the start of the answer.

    They begin with exactly one BOS if the tokenizer adds one, even if the template writes it too.
    They never end with an EOS that only the tokenizer adds.
    """
    ids = runtime.tokenize(runtime.chat_prompt(messages), bos=False, special=True)
    bos = runtime.bos
    if bos is None:
        return ids
    if bos not in ids:
        return [bos, *ids]
    while ids[:2] == [bos, bos]:
        del ids[0]
    return ids


def render(template: Any, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """Messages in a chat template, up to the start of the answer; `special` are tokens by the names
    that the template uses."""
    return templates.render(template, messages, special, add_generation_prompt=True)


def text(pieces: Iterable[bytes]) -> Iterator[str]:
    """Join pieces to text. A character whose bytes are split over tokens is yielded when it is
    complete; one that is never completed becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if ready := decoder.decode(piece):
            yield ready
    if rest := decoder.decode(b"", final=True):
        yield rest
