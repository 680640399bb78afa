"""General text that the packed model writes itself: what it must go on knowing.

Some of it is learnt beside a person's examples (`replay`). Other text judges how far the tuned
model has moved, as KL to the untuned one. Nothing is downloaded, and nothing leaves the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.adapters.base import PackedBase
from edgepack.calibration import self_text
from edgepack.core.progress import Steps
from edgepack.finetune.examples import Example
from edgepack.finetune.frozen import FrozenModel, Pair, PairsOf, frozen_pairs
from edgepack.finetune.gradient import hidden
from edgepack.finetune.loss import divergence
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder

LENGTH = 128
"""Tokens of a sequence."""
JUDGES, REPLAYED = 8, 16
"""Sequences that judge, and that are learnt where some are."""
AT_ONCE = 8
"""Sequences that are written together: so many keys and values are in memory."""


class PackedDecoder(Decoder):
    """Q + L·R as a decoder that keeps one block in memory, and of the tables only rows in use."""

    stays: ClassVar[bool] = False

    def __init__(self, base: PackedBase, model: FrozenModel) -> None:
        self.base, self.model = base, model
        super().__init__(base.checkpoint, device=model.device)

    def block(self, index: int) -> Block:
        """See `Decoder`."""
        return self.model.block(index, self._pairs)

    def ends(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]:
        """See `Decoder`."""
        return self._logits, lambda tokens, start: self.model.embed(tokens, start)

    def _logits(self, x: Tensor) -> Tensor:
        head = self.model.head(self._pairs)
        h = head.normalize(x)
        return torch.cat([functional.linear(h, W, bias) for _, W, bias in head.chunks(4096)], -1)

    def _pairs(self, name: str) -> list[Pair]:
        return frozen_pairs(self.base, name)


def write(decoder: Decoder, count: int, seed: int) -> Steps[list[Example]]:
    """`count` sequences as examples of which every token is learnt: chats, if the model has a
    template."""
    found: list[Example] = []
    for start in range(0, count, AT_ONCE):
        batch = range(start, min(start + AT_ONCE, count))
        ids = yield from self_text.write(
            decoder, batch, count, LENGTH + 1, seed, "finetune", cycle=("chat",)
        )
        found += [Example(row[:-1], row[1:]) for row in ids]
    return found


@dataclass(frozen=True)
class Drift:
    """How far the tuned model has moved: mean KL(untuned ‖ tuned) in nats a token, and the share of
    tokens with the same likeliest next one."""

    kl: float
    same_top1: float


@torch.no_grad()
def drift(model: FrozenModel, texts: Sequence[Example], before: PairsOf, now: PairsOf) -> Drift:
    """On some texts."""
    total, hits, tokens = 0.0, 0, 0
    head = model.head(before)
    for text in texts:
        then, here = (hidden(model, text.ids[None], pairs)[0] for pairs in (before, now))
        found = divergence(head, here, then, gradient=False)
        total, hits, tokens = total + found.total, hits + found.hits, tokens + len(text.ids)
    return Drift(total / tokens, hits / tokens)
