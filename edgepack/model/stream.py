"""Hidden states of many tokens, streamed through a model block by block, in files on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgepack.core.disk import atomic
from edgepack.errors import CalibrationError
from edgepack.model.decoder import Decoder

TOKENS_AT_ONCE = 4096  # tokens whose activations are in memory at once
RUNS = 8
"""Runs of batches that are summed by themselves. A constant: on it depends how sums are rounded."""


@dataclass(frozen=True)
class Batch:
    """A run of sequences that pass a block together, all for training or all held out."""

    rows: slice
    held_out: bool


def micro_batches(tokens: Tokens) -> list[Batch]:
    """All sequences in batches of about `TOKENS_AT_ONCE` tokens."""
    count, length = tokens.train.shape
    total, size = count + len(tokens.held_out), max(1, TOKENS_AT_ONCE // length)
    bounds = [(a, min(a + size, count), False) for a in range(0, count, size)]
    bounds += [(a, min(a + size, total), True) for a in range(count, total, size)]
    return [Batch(slice(a, b), held_out) for a, b, held_out in bounds]


@dataclass(frozen=True)
class Run:
    """Batches that are summed by themselves, so that others can be computed elsewhere. Sequences
    from `start` on; `batches` are counted from there."""

    number: int
    start: int
    batches: tuple[slice, ...]
    held_out: bool

    @property
    def sequences(self) -> int:
        """How many there are."""
        return int(self.batches[-1].stop)

    @property
    def rows(self) -> slice:
        """Its sequences among all."""
        return slice(self.start, self.start + self.sequences)


def runs(tokens: Tokens) -> list[Run]:
    """All batches in about `RUNS` runs of training sequences, and such runs of held-out ones."""
    batches = micro_batches(tokens)
    train = [batch for batch in batches if not batch.held_out]
    held_out = [batch for batch in batches if batch.held_out]
    size = max(1, -(-len(train) // RUNS))
    groups = [
        part[at : at + size] for part in (train, held_out) for at in range(0, len(part), size)
    ]
    return [_run(number, group) for number, group in enumerate(groups)]


def _run(number: int, batches: list[Batch]) -> Run:
    start = batches[0].rows.start
    rows = (slice(b.rows.start - start, b.rows.stop - start) for b in batches)
    return Run(number, start, tuple(rows), batches[0].held_out)


@dataclass(frozen=True)
class Activations:
    """Hidden states ``[sequences, length, hidden]`` in a raw file, read and written in runs.

    Plain reads, not a memory map, so that the file does not count as the process's memory.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.float32

    def read(self, rows: slice) -> Tensor:
        """Sequences `rows` as float32.

        They are copied into memory that torch allocates: the rounding of products depends on the
        alignment of their operands, and a resumed run must give the same bytes.
        """
        per_row = self.shape[1] * self.shape[2]
        found = torch.empty(rows.stop - rows.start, *self.shape[1:], dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(rows.start * per_row * self.dtype.itemsize)
            read = file.readinto(found.view(torch.uint8).numpy().data)
        if read != found.nbytes:
            raise CalibrationError(
                f"{self.path}: has fewer than the {rows.stop} sequences that were written",
                hint="a file of the cache is damaged: remove its folder and run again",
            )
        return found.float()

    def write(self, parts: Iterable[Tensor]) -> None:
        """Write all sequences, in order; the file appears when it is whole."""
        with atomic(self.path) as temporary, temporary.open("wb") as file:
            for part in parts:
                file.write(part.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().data)

    @property
    def exists(self) -> bool:
        """Whether the whole file was written."""
        return self.path.exists()


def states(
    decoder: Decoder, ids: Tensor, folder: Path, name: str, dtype: torch.dtype = torch.float32
) -> list[Activations]:
    """Files for the hidden states of token ids ``[sequences, length]`` before every block and, the
    last, before the head."""
    shapes = [(*ids.shape, width) for width in decoder.widths]
    return [Activations(folder / f"{name}-{i}", shape, dtype) for i, shape in enumerate(shapes)]


@dataclass(frozen=True)
class Tokens:
    """Sequences of token ids: `train` ``[n, length]`` to compute H, `held_out` ``[m, length]`` to
    evaluate the result. `counted` bool ``[n + m, length]`` has the positions whose labels have
    gradients; None: all."""

    train: Tensor
    held_out: Tensor
    counted: Tensor | None = None

    @property
    def all(self) -> Tensor:
        """Both kinds of sequences, the training ones first."""
        return torch.cat([self.train, self.held_out])
