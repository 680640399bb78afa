"""A block of which some matrices are rounded: training of all that may still move.

The others are float32 and move freely; of what is rounded, scales and factors move (`trainable`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from edgepack.core.accelerator import back
from edgepack.core.weights import FactoredWeight
from edgepack.model.block import Block
from edgepack.recover import trainable
from edgepack.recover.adam import Moments, schedule, unit_step
from edgepack.recover.trainable import Parts
from edgepack.recover.training import Data, order

WEIGHT = "W"
"""The part of a matrix that is not rounded yet: all of it."""
MOVES = ("scales", "factors")
"""Kinds of parts of a rounded matrix that move."""


@dataclass(frozen=True)
class Settings:
    """Steps of Adam on `tokens` tokens each, in whole sequences. The learning rate is relative, and
    for a block that has lost what it does: of 0.02, a step then changes a matrix by about 2 % of
    its root mean square."""

    steps: int
    tokens: int
    learning_rate: float
    seed: int


@dataclass
class BlockTraining:
    """Training of `block`, which is as the checkpoint has it at first; `round` replaces matrices.

    A difference e from the target counts eᵀ·`H_out`·e (None: eᵀe). Products are in `dtype`.
    """

    block: Block
    H_out: Tensor | None
    data: Data
    settings: Settings
    dtype: torch.dtype
    rounded: dict[str, FactoredWeight] = field(default_factory=dict)
    masters: dict[str, Parts] = field(default_factory=dict)
    done: int = 0
    """Steps made."""

    def __post_init__(self) -> None:
        if self.H_out is not None:
            self.H_out = self.H_out.to(self.block.device)
        self.masters = {role: {WEIGHT: self.block.weights[role]} for role in self.block.linears}

    def weight(self, role: str) -> Tensor:
        """A matrix that is not rounded yet, as it is now."""
        return self.masters[role][WEIGHT]

    def change(self, role: str, change: Tensor) -> None:
        """Add to a matrix that is not rounded yet."""
        W = self.weight(role)
        self.masters[role][WEIGHT] = W + back(change, W)

    def round(self, role: str, weight: FactoredWeight, *, fixed: bool) -> None:
        """From now on the matrix is `weight`, of which nothing moves if it is `fixed`."""
        weight = weight.to(self.block.device)
        self.rounded[role] = weight
        self.masters[role] = {} if fixed else trainable.masters(weight, MOVES)

    def result(self, role: str) -> FactoredWeight:
        """A rounded matrix as it is to be written."""
        return trainable.apply_masters(self.rounded[role], self.masters.get(role, {}))

    # ------------------------------------------------------------------------ training

    def train(self, steps: int) -> Iterator[int]:
        """Steps of Adam, each yielded before it is made. If the held-out error is no less behind
        them, all is again as before."""
        if not any(self.masters.values()):
            return
        before, kept = self.error(self.now()), _map(self.masters)
        rate = min(1.0, math.sqrt(before / self._lost)) if self._lost else 1.0
        moments: dict[tuple[str, str], Moments] = {}
        for step in range(steps):
            yield step
            self._step(step, rate * schedule(step, steps), moments)
        if not self.error(self.now()) < before:
            self.masters = kept

    @torch.no_grad()
    def error(self, block: Callable[[Tensor], Tensor]) -> float:
        """Mean error of a block's outputs on held-out sequences, per element."""
        total, count = 0.0, 0
        data, device = self.data, self.block.device
        for batch in data.batches:
            x, target = (a.read(batch.rows).to(device) for a in (data.inputs, data.targets))
            total += float(self._distance(block(x), target)) * len(x)
            count += len(x)
        return total / count

    @cached_property
    def _lost(self) -> float:
        """The error of a block that does nothing. Learning rates are in proportion to the root of
        the present error's share of it, or their noise would be larger than a small error."""
        width = self.data.targets.shape[2]
        same = width == self.data.inputs.shape[2]
        return self.error(lambda x: x if same else x.new_zeros(*x.shape[:2], width))

    def _step(self, step: int, rate: float, moments: dict[tuple[str, str], Moments]) -> None:
        size = max(1, self.settings.tokens // self.data.inputs.shape[1])
        rows = order(self.data.train, size, self.settings.seed, self.done)
        x, target = (t.to(self.block.device) for t in self.data.sequences(rows))
        leaves: dict[tuple[str, str], Tensor] = {}
        with torch.enable_grad():
            block = self.now(leaves)
            out = block(x, partial(block.linear, dtype=self.dtype))
            distance = self._distance(out, target)
        for key, gradient in zip(
            leaves, torch.autograd.grad(distance, list(leaves.values())), strict=True
        ):
            role, part = key
            master = self.masters[role][part]
            unit = master.square().mean().sqrt() if part == WEIGHT else unit_step(part, master)
            known = moments.setdefault(key, Moments.zero(master))
            reach = rate * self.settings.learning_rate * unit
            self.masters[role][part] = master - reach * known.update(gradient * unit, step)
        self.done += 1

    def now(self, leaves: dict[tuple[str, str], Tensor] | None = None) -> Block:
        """The block as it is now; `leaves` gets the values that can be differentiated by."""
        weights = dict(self.block.weights)
        for role, parts in self.masters.items():
            weight = self.result(role) if role in self.rounded else None
            values = parts if weight is None else trainable.values(weight, parts)
            values = {part: v.detach().requires_grad_() for part, v in values.items()}
            if leaves is not None:
                leaves |= {(role, part): value for part, value in values.items()}
            weights[role] = values[WEIGHT] if weight is None else trainable.dense(weight, values)
        return replace(self.block, weights=weights)

    def _distance(self, out: Tensor, target: Tensor) -> Tensor:
        """Mean error per element."""
        error = (out - target).flatten(0, 1)
        weighed = error if self.H_out is None else error @ self.H_out
        return (weighed * error).mean()


def _map(masters: dict[str, Parts]) -> dict[str, Parts]:
    """The same tensors in other dictionaries: a step makes new tensors."""
    return {role: dict(parts) for role, parts in masters.items()}
