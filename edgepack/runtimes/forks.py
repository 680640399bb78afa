"""Token sequences with the same beginning, in a layout that computes the beginning only once.

llama.cpp lets a token of a batch belong to several sequences. The shared beginning is decoded once
with the numbers of all its continuations; each continuation then attends to it and to itself. This
module does not depend on llama.cpp; `LlamaCpp.branches` gives it the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgepack.errors import EdgepackError


@dataclass(frozen=True)
class Fork:
    """A beginning (`stem`) and the continuations (`branches`) to be scored."""

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not (self.stem and self.branches and all(self.branches)):
            raise ValueError(f"a fork has a stem and branches, none of them empty: {self}")

    @property
    def tokens(self) -> int:
        """Tokens to decode; the last token of a branch need not be, as it predicts nothing."""
        return len(self.stem) + sum(len(branch) - 1 for branch in self.branches)

    @property
    def sequences(self) -> int:
        """Sequences that are needed; a branch of one token needs none, as the stem predicts it."""
        return max(1, sum(len(branch) > 1 for branch in self.branches))


class Step(NamedTuple):
    """One token of a batch: its position, its sequences, and whether its logits are needed."""

    token: int
    position: int
    sequences: Sequence[int]
    has_logits: bool


def layout(forks: Iterable[Fork]) -> tuple[list[Step], list[list[int]]]:
    """The batch, and for every branch the rows of logits that predict its tokens."""
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
    """Groups of consecutive forks that fit into a batch of that many tokens and sequences; a fork
    that is too long for a batch is a group of its own."""
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
    """Refuse forks that need more tokens or sequences than a runtime has."""
    tokens, branches = sum(f.tokens for f in forks), sum(f.sequences for f in forks)
    if tokens > context:
        raise EdgepackError(
            f"{tokens} tokens do not fit into the context of {context}",
            hint="choose a larger context",
        )
    if branches > sequences:
        raise EdgepackError(f"{branches} sequences do not fit into the {sequences} of the runtime")
