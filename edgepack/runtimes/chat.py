"""A conversation with any runtime, as text that can be printed while it arrives."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgepack.errors import EdgepackError
from edgepack.runtimes._base import LIKELIEST, Runtime, Sampling


def chat(
    runtime: Runtime,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int = 256,
    sampling: Sampling = LIKELIEST,
) -> Iterator[str]:
    """The model's answer to messages ``{"role": …, "content": …}``, in whole characters."""
    prompt = runtime.tokenize(runtime.chat_prompt(messages), special=True)
    if prompt[:2] == [runtime.bos, runtime.bos]:  # some templates write it themselves
        prompt = prompt[1:]
    answer = runtime.generate(prompt, max_tokens, sampling)
    return text(runtime.piece(token) for token in answer)


def render(template: Any, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """Messages in a chat template (Jinja, as transformers renders it), up to where the answer
    begins; `special` are tokens that it names."""
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    if not template:
        raise EdgepackError("the model has no chat template", hint="it is not made for chat")
    draw: Any = chat_template_utils.render_jinja_template  # its annotations are wrong
    how = {"chat_template": template, "add_generation_prompt": True, **special}
    try:
        (prompt,), _ = draw([list(messages)], **how)
    except TemplateError as error:  # templates refuse what they were not trained on
        raise EdgepackError(f"the chat template refuses the messages: {error}") from error
    return str(prompt)


def text(pieces: Iterable[bytes]) -> Iterator[str]:
    """Join pieces to text; a character whose bytes are split over tokens is held back until it is
    whole, and one that never becomes whole turns into U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if ready := decoder.decode(piece):
            yield ready
    if rest := decoder.decode(b"", final=True):
        yield rest
