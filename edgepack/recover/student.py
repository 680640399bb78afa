"""The packed model with trainable parts: its loss and gradient, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from edgepack.core.weights import FactoredWeight
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, Head
from edgepack.recover import trainable
from edgepack.recover.distance import kl_gradient

Masters = dict[str, dict[str, Tensor]]
"""Weight → part → float32 master; a norm or a bias has the one part `VALUE`."""

VALUE = "value"

Leaves = dict[tuple[str, str], Tensor]
"""Values, or gradients at them, by weight and part."""


@dataclass
class Student:
    """The packed model. `decoder` is the model that was packed, `load` reads its decomposed
    matrices, `masters` holds the trained parts of them, and of norms and biases.

    A training step multiplies by weights in `dtype`; all else, and all of `forward`, is float32.
    """

    decoder: Decoder
    load: Callable[[str], FactoredWeight]
    masters: Masters
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.device

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.decoder.dimensions.num_hidden_layers

    def current_weight(self, name: str) -> FactoredWeight:
        """A matrix with its current masters, rounded as it would be written now."""
        return trainable.apply_masters(self.load(name).to(self.device), self.masters.get(name, {}))

    def current_decoder(self, leaves: Leaves | None = None) -> Decoder:
        """The packed model with its current masters, its weights dense and on the device. If given,
        `leaves` is filled with the values that loaded weights are computed from, to differentiate
        by them."""
        names = self.decoder.checkpoint.specs
        now = {name: partial(self._weight, name, leaves) for name in names}
        return Decoder(self.decoder.checkpoint, now, self.device)

    def vector(self, name: str) -> Tensor:
        """A norm's gain or a bias with its current value."""
        if name in self.masters:
            return self.masters[name][VALUE]
        return self.decoder.checkpoint.tensor(name).to(self.device)

    def _weight(self, name: str, leaves: Leaves | None) -> Tensor:
        parts: dict[str, Tensor]
        if not self.decoder.checkpoint.specs[name].is_matrix:
            weight, parts = None, {VALUE: self.vector(name)}
        else:
            weight = self.current_weight(name)
            parts = trainable.values(weight, self.masters.get(name, {}))
        if leaves is not None and name in self.masters:
            parts = {part: value.detach().requires_grad_() for part, value in parts.items()}
            leaves |= {(name, part): value for part, value in parts.items()}
        return parts[VALUE] if weight is None else trainable.dense(weight, parts)

    def block(self, index: int) -> Block:
        """A block with dense weights."""
        return self.current_decoder().block(index)

    def head(self) -> Head:
        """The final norm and the packed output matrix."""
        return self.current_decoder().head()

    @torch.no_grad()
    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """Hidden states ``[batch, time, hidden]`` after the embedding → after the last block. Each
        block is loaded once for all batches."""
        for index in range(self.blocks):
            block = self.block(index)
            parts = [block(x) for x in parts]
        return parts

    def gradient(
        self, x: Tensor, target: Tensor, teacher: Callable[[], Head]
    ) -> tuple[float, Leaves]:
        """Mean KL to the original over a batch, and its gradient at the rounded masters.

        x ``[batch, time, hidden]`` are the embedded tokens, `target` the original's last hidden
        states; `teacher` loads the original's head. Block inputs are kept; all else inside a block
        is computed again in the backward pass (Chen et al., arXiv 1604.06174).
        """
        inputs = [x]
        with torch.no_grad():
            for index in range(self.blocks):
                inputs.append(self._apply(self.block(index), inputs[-1]))
        last = inputs.pop()
        found = kl_gradient(
            self.head(), teacher(), last.flatten(0, 1), target.flatten(0, 1), self.dtype
        )
        outside = self.decoder.checkpoint.architecture.outside
        gradients = {
            (outside[role], VALUE): gradient
            for role, gradient in found.vectors.items()
            if outside[role] in self.masters
        }
        g = found.hidden.view_as(last)
        for index in reversed(range(self.blocks)):
            g = self._backward(index, inputs.pop(), g, gradients)
        return found.kl, gradients

    def _backward(self, index: int, x: Tensor, g: Tensor, gradients: Leaves) -> Tensor:
        """The gradient at a block's input; adds those of its parts to `gradients`."""
        leaves: Leaves = {}
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self._apply(self.current_decoder(leaves).block(index), x)
        at_x, *at_leaves = torch.autograd.grad(out, [x, *leaves.values()], g)
        gradients |= zip(leaves, at_leaves, strict=True)
        return at_x

    def _apply(self, block: Block, x: Tensor) -> Tensor:
        """A block with its products of weights and activations in `dtype`."""
        return block(x, partial(block.linear, dtype=self.dtype))
