"""Loss and gradients of a batch: one sweep forward, one back, one block's inside at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.finetune.activations import Kind, saved
from edgepack.finetune.batches import Batch
from edgepack.finetune.frozen import FrozenModel, PackedHead, Pair, PairsOf
from edgepack.finetune.loss import cross_entropy, divergence

Receive = Callable[[str, Tensor, Tensor], None]
"""(weight, gradient at lora_A, gradient at lora_B): called as soon as they are known."""


@dataclass(frozen=True)
class Score:
    """Σ cross-entropy in nats over `tokens` learnt tokens, of which `hits` were the likeliest."""

    total: float = 0.0
    tokens: int = 0
    hits: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.total + other.total, self.tokens + other.tokens, self.hits + other.hits)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.total / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of the learnt tokens that were the likeliest."""
        return self.hits / max(1, self.tokens)


@torch.no_grad()
def hidden(model: FrozenModel, ids: Tensor, pairs: PairsOf) -> Tensor:
    """Hidden states ``[batch, time, hidden]`` before the final norm."""
    x = model.embed(ids)
    for index in range(model.blocks):
        x = model.apply(index, x, pairs)
    return x


@torch.no_grad()
def score(model: FrozenModel, batch: Batch, pairs: PairsOf) -> Score:
    """The loss of a batch."""
    places = batch.learnt
    x = hidden(model, batch.ids, pairs).flatten(0, 1)[places.to(model.device)]
    labels = batch.labels.flatten()[places].to(model.device)
    found = cross_entropy(model.head(pairs), x, labels, gradient=False)
    return Score(found.total, len(labels), found.hits)


def backward(
    model: FrozenModel,
    batch: Batch,
    pairs: PairsOf,
    kind: Kind,
    receive: Receive,
    lowest: int = 0,
    teacher: Tensor | None = None,
) -> Score:
    """The loss of a batch, and the gradients of its sum at all trained pairs, the first of which is
    in block `lowest`: no gradient is needed below it. With `teacher`, the untuned model's `hidden`
    of the batch, the loss is the KL to it at the learnt places.

    Exact, unless `kind` rounds the saved activations or the model's arithmetic rounds products.
    """
    with closing(saved(kind)) as stack:
        with torch.no_grad():
            x = model.embed(batch.ids)
            for index in range(model.blocks):
                if index >= lowest:
                    stack.push(x)
                x = model.apply(index, x, pairs)
        found, g = _at_the_end(model.head(pairs), batch, x, teacher)
        del x
        for index in reversed(range(lowest, model.blocks)):
            g = _block_backward(model, index, stack.pop(), g, pairs, receive, last=index == lowest)
    return found


def _at_the_end(
    head: PackedHead, batch: Batch, x: Tensor, teacher: Tensor | None
) -> tuple[Score, Tensor]:
    """The loss, and its gradient at the last hidden states x ``[batch, time, hidden]``."""
    places = batch.learnt.to(x.device)
    own = x.flatten(0, 1)[places]
    if teacher is None:
        found = cross_entropy(head, own, batch.labels.flatten().to(x.device)[places])
    else:
        found = divergence(head, own, teacher.flatten(0, 1)[places])
    g = torch.zeros_like(x).flatten(0, 1)
    g.index_copy_(0, places, found.gradient)
    return Score(found.total, len(places), found.hits), g.view_as(x)


def _block_backward(
    model: FrozenModel,
    index: int,
    x: Tensor,
    g: Tensor,
    pairs: PairsOf,
    receive: Receive,
    *,
    last: bool,
) -> Tensor:
    """The gradient at a block's input from that at its output. `last`: nobody needs it."""
    used: dict[str, Pair] = {}

    def noted(name: str) -> list[Pair]:
        own = list(pairs(name))
        trained = [pair for pair in own if pair.A.requires_grad]
        if trained:
            (used[name],) = trained
        return own

    x.requires_grad_(not last)
    with torch.enable_grad():
        out = model.apply(index, x, noted)
    leaves = [leaf for pair in used.values() for leaf in (pair.A, pair.B)]
    inputs = leaves if last else [x, *leaves]
    found = list(torch.autograd.grad(out, inputs, g))
    at_x = g if last else found.pop(0)
    for name, at_A, at_B in zip(used, found[::2], found[1::2], strict=True):
        receive(name, at_A, at_B)
    return at_x
