"""What edgepack asks of a program that runs a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.core.errors import EdgepackError
from edgepack.core.untrusted import shorten
from edgepack.runtimes.forks import Fork


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the default is the likeliest token, the same every time.

    `repeat_penalty` > 1 lowers what the model itself has said among its last 64 tokens;
    `ignore_eos` goes on behind the end of its turn, for timing.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    repeat_penalty: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


MAX_CONTEXT = 2**31 - 1
LIKELIEST = Sampling()
PENALTY_WINDOW = 64
"""Tokens back that a repeat penalty looks."""


class Scorer(Protocol):
    """A loaded model that can be measured."""

    context: int
    """Most tokens of one `logits` or `branches`."""
    sequences: int
    """Most sequences of one `branches`, summed over its forks."""
    vocab_size: int
    bos: int | None
    """Token that every sequence starts with, None where the model adds none."""

    def logits(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Logits ``[len(tokens) − first, vocab]`` of positions `first` and later, with no history
        but the tokens themselves."""
        ...

    def branches(self, forks: Sequence[Fork]) -> Iterator[NDArray[np.float32]]:
        """For every branch of every fork, in order, the logits ``[len(branch), vocab]`` that
        predict its tokens, with no history but its fork's stem and itself; in one decoding."""
        ...

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text; `bos` puts the model's first token before it (if it has one),
        `special` reads ``<|im_end|>`` and the like as one token."""
        ...

    def close(self) -> None:
        """Free the model; more than once does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_length(tokens: Sequence[int], context: int) -> None:
    """Refuse what is longer than a context, or nothing at all."""
    if not 0 < len(tokens) <= context:
        raise EdgepackError(
            f"{len(tokens)} tokens do not fit into the context of {context}",
            hint="choose a larger context" if tokens else None,
        )


def check_memory(context: int, bytes_per_token: int) -> None:
    """Refuse a context whose keys and values alone do not fit in memory."""
    needed, free = context * bytes_per_token, psutil.virtual_memory().available
    if context > MAX_CONTEXT or needed > free:
        why = f"{needed / 1e9:.1f} GB for keys and values, {free / 1e9:.1f} GB are free"
        raise EdgepackError(
            f"a context of {shorten(str(context), 30)} tokens is too large here ({why})",
            hint="choose a smaller context",
        )


def check_numbers(logits: NDArray[np.floating]) -> None:
    """Refuse predictions of which one is no number; an infinity can be meant."""
    if np.isnan(logits).any():
        raise EdgepackError(
            "the model predicts NaN",
            hint="its weights, or the factors beside them, are damaged",
        )


class Closing:
    """What is closed when its `with` block ends."""

    def close(self) -> None:
        """Free it."""
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
    """A loaded model that can also be talked to; `context` holds for `generate` too."""

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int = 256,
        sampling: Sampling = LIKELIEST,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """What follows the tokens, until the model ends its turn (that token is left out), one of
        `stop`, `max_tokens` or the end of the context."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token (not always whole characters); none for control tokens."""
        ...

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages in the model's own chat template, up to where its answer begins."""
        ...


def tokenize_prefix(runtime: Scorer, text: str, *, special: bool = False) -> list[int]:
    """Tokens of a text that something follows: the model's first token before it, and nothing after
    it, also where the tokenizer ends every text with EOS."""
    ids = runtime.tokenize(text, bos=False, special=special)
    return ids if runtime.bos is None else [runtime.bos, *ids]
