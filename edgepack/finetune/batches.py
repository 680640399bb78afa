"""Which examples a step sees, and how they pass through the model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.finetune.examples import IGNORED, Example

FEW = 10
"""Of fewer examples than this, none is held out."""


@dataclass(frozen=True)
class Batch:
    """ids and labels ``[examples, time]``, shorter ones padded at their ends, where nothing is
    learnt and nothing before it sees it."""

    ids: Tensor
    labels: Tensor

    @property
    def learnt(self) -> Tensor:
        """Flat positions with a label."""
        return (self.labels.flatten() != IGNORED).nonzero().flatten()


def micro_batches(examples: Sequence[Example], tokens: int) -> Iterator[Batch]:
    """The examples in batches of at most `tokens` positions each (or of one example), the longest
    ones first, so that those of a batch are of about one length."""
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    start = 0
    while start < len(ordered):
        count = max(1, tokens // len(ordered[start].ids))
        yield _padded(ordered[start : start + count])
        start += count


def _padded(examples: Sequence[Example]) -> Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([example.ids for example in examples], batch_first=True)
    labels = pad([example.labels for example in examples], batch_first=True, padding_value=IGNORED)
    return Batch(ids, labels)


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(to learn, held out). Fewer than `FEW` examples are all learnt."""
    count = round(share * len(examples)) if len(examples) >= FEW else 0
    drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = set(drawn[:count].tolist())
    learnt = [e for i, e in enumerate(examples) if i not in chosen]
    return learnt, [e for i, e in enumerate(examples) if i in chosen]
