"""Token sequences that begin alike, laid out so that what they share is computed once.

llama.cpp lets a token of a batch belong to several sequences: the shared beginning is decoded once
with the numbers of all its continuations, each of which then sees that and itself. Nothing here
knows llama.cpp; `LlamaCpp.branches` hands the layout over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgepack.core.errors import EdgepackError


@dataclass(frozen=True)
class Fork:
    """A beginning (`stem`) and the continuations (`branches`) whose probabilities are asked for."""

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not (self.stem and self.branches and all(self.branches)):
            raise ValueError(f"a fork has a stem and branches, none of them empty: {self}")

    @property
    def tokens(self) -> int:
        """Tokens to decode: a branch's last one predicts nothing that is asked for."""
        return len(self.stem) + sum(len(branch) - 1 for branch in self.branches)

    @property
    def sequences(self) -> int:
        """Sequences to hold apart: a branch of one token is read off the stem."""
        return max(1, sum(len(branch) > 1 for branch in self.branches))


class Step(NamedTuple):
    """One token of a batch: where it stands, in which sequences, and whether its logits count."""

    token: int
    position: int
    sequences: Sequence[int]
    has_logits: bool


def layout(forks: Iterable[Fork]) -> tuple[list[Step], list[list[int]]]:
    """The batch, and for every branch which of the wanted rows of logits predict its tokens."""
    steps: list[Step] = []
    rows: list[list[int]] = []
    sequence = row = 0
    for fork in forks:
        start, shared = len(fork.stem), row
        numbers = range(sequence, sequence + fork.sequences)
        steps += [Step(t, at, numbers, at == start - 1) for at, t in enumerate(fork.stem)]
        row += 1
        free = iter(numbers)
        for branch in fork.branches:
            inner = branch[:-1]
            if inner:
                own = (next(free),)
                steps += [Step(t, at, own, True) for at, t in enumerate(inner, start)]
            rows.append([shared, *range(row, row + len(inner))])
            row += len(inner)
        sequence += fork.sequences
    return steps, rows


def pack(forks: Iterable[Fork], tokens: int, sequences: int) -> Iterator[list[Fork]]:
    """Consecutive forks that fit together into a batch of so many tokens and sequences; a fork
    that is too long by itself goes alone."""
    batch: list[Fork] = []
    for fork in forks:
        together = [*batch, fork]
        too_long = sum(f.tokens for f in together) > tokens
        if batch and (too_long or sum(f.sequences for f in together) > sequences):
            yield batch
            together = [fork]
        batch = together
    if batch:
        yield batch


def check_fits(forks: Sequence[Fork], context: int, sequences: int) -> None:
    """An error where forks are together more than a runtime holds."""
    tokens, branches = sum(f.tokens for f in forks), sum(f.sequences for f in forks)
    if tokens > context:
        raise EdgepackError(
            f"{tokens} tokens do not fit into the context of {context}",
            hint="choose a larger context",
        )
    if branches > sequences:
        raise EdgepackError(f"{branches} sequences do not fit into the {sequences} of the runtime")
