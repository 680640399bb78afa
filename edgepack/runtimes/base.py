"""The methods that edgepack needs of a program that runs a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.runtimes.forks import Fork


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled; the default is always the likeliest token.

    `repeat_penalty` > 1 lowers the tokens that the model generated among its last 64;
    `ignore_eos` continues after the end of its turn, for timing.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    repeat_penalty: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


MAX_CONTEXT = 2**31 - 1
MAX_SCALE = 100
LIKELIEST = Sampling()
PENALTY_WINDOW = 64
"""Number of last tokens that a repeat penalty takes into account."""


class Scorer(Protocol):
    """A loaded model that can be measured."""

    context: int
    """Most tokens of one `logits` or `branches`."""
    sequences: int
    """Most sequences of one `branches`, in all its forks together."""
    vocab_size: int
    bos: int | None
    """Token that every sequence starts with, None if the model adds none."""

    def logits(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Logits ``[len(tokens) − first, vocab]`` of the positions from `first` on, without any
        earlier history."""
        ...

    def branches(self, forks: Sequence[Fork]) -> Iterator[NDArray[np.float32]]:
        """For every branch of every fork, in order, the logits ``[len(branch), vocab]`` that
        predict its tokens, given only its fork's stem; all are decoded together."""
        ...

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text. `bos` adds the model's first token (if it has one); `special` reads
        ``<|im_end|>`` and the like as one token."""
        ...

    def close(self) -> None:
        """Free the model; may be called more than once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_length(tokens: Sequence[int], context: int) -> None:
    """Refuse tokens that are more than the context, or none."""
    if not 0 < len(tokens) <= context:
        raise EdgepackError(
            f"{len(tokens)} tokens do not fit into the context of {context}",
            hint="choose a larger context" if tokens else None,
        )


def check_scales(scales: Sequence[float], count: int) -> None:
    """Refuse scales that are not one finite number for each of `count` adapters."""
    if len(scales) != count:
        raise ValueError(f"{len(scales)} scales for {count} adapters")
    for scale in scales:
        if not abs(scale) <= MAX_SCALE:
            raise EdgepackError(
                f"{scale} is no scale of an adapter", hint=f"−{MAX_SCALE} to {MAX_SCALE}, usually 1"
            )


def check_memory(context: int, bytes_per_token: int) -> None:
    """Refuse a context whose keys and values do not fit in memory."""
    needed, free = context * bytes_per_token, psutil.virtual_memory().available
    if context > MAX_CONTEXT or needed > free:
        why = f"{needed / 1e9:.1f} GB for keys and values, {free / 1e9:.1f} GB are free"
        raise EdgepackError(
            f"a context of {shorten(str(context), 30)} tokens is too large here ({why})",
            hint="choose a smaller context",
        )


def check_numbers(logits: NDArray[np.floating]) -> None:
    """Refuse logits with NaN; infinities are allowed."""
    if np.isnan(logits).any():
        raise EdgepackError(
            "the model predicts NaN",
            hint="its weights, or the factors beside them, are damaged",
        )


class Closing:
    """A context manager that calls `close` at its end."""

    def close(self) -> None:
        """Free the resources."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Runtime(Scorer, Protocol):
    """A loaded model that can also generate text; `context` limits `generate` too."""

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int = 256,
        sampling: Sampling = LIKELIEST,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """The tokens that the model generates after `tokens`. It ends when the model ends its turn
        (without that token), at one of `stop`, after `max_tokens`, or when the context is full."""
        ...

    def set_scales(self, scales: Sequence[float]) -> None:
        """Change the scales of the adapters that it was opened with; 0 is without it. What is
        generated next has no memory of what was before."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token (not always whole characters); empty for control tokens."""
        ...

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages in the model's chat template, up to the start of its answer."""
        ...


def tokenize_prefix(runtime: Scorer, text: str, *, special: bool = False) -> list[int]:
    """Tokens of a text that more text will follow: with the model's first token, but without the
    EOS that some tokenizers add at the end."""
    ids = runtime.tokenize(text, bos=False, special=special)
    return ids if runtime.bos is None else [runtime.bos, *ids]
