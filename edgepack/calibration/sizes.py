"""What a calibration takes of memory and disk, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from math import isqrt

import torch

from edgepack.calibration.gram import PANEL, gram_bytes
from edgepack.calibration.groups import groups, pass_bytes, stacks_of
from edgepack.calibration.items import Stack
from edgepack.calibration.passes import LABELS_AT_ONCE, PART
from edgepack.calibration.side_by_side import threads
from edgepack.calibration.text import counts
from edgepack.checkpoint import Checkpoint
from edgepack.core.stage import Disk
from edgepack.core.weights import WeightSpec
from edgepack.model.carried import extra_floats
from edgepack.model.decoder import Decoder
from edgepack.model.gated_delta import kept_floats
from edgepack.model.stream import TOKENS_AT_ONCE, Run, Tokens, runs
from edgepack.recipe import sections

BFLOAT, FLOAT, DOUBLE = 2, 4, 8


def matrices_by_block(model: Checkpoint) -> Iterator[list[WeightSpec]]:
    """The matrices of every block."""
    blocks: dict[int, list[WeightSpec]] = {}
    for spec in model.specs.values():
        if spec.block is not None and spec.is_matrix:
            blocks.setdefault(spec.block, []).append(spec)
    yield from blocks.values()


def bytes_outside(model: Checkpoint) -> int:
    """Bytes of embedding and head as float32."""
    return FLOAT * sum(s.numel for s in model.specs.values() if s.block is None)


@dataclass(frozen=True)
class Sizes:
    """Of a sweep over a model."""

    model: Checkpoint
    calibrate: sections.Calibrate

    @property
    def output_side(self) -> bool:
        """Whether gradients have moments too."""
        return self.calibrate.objective == "model"

    @cached_property
    def runs(self) -> list[Run]:
        """Those that the tokens will be in."""
        length = self.calibrate.sequence_length
        shapes = [(n, length) for n in counts(self.calibrate, self.model.dimensions)]
        return runs(Tokens(*(torch.empty(shape, device="meta") for shape in shapes)))

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        length = self.calibrate.sequence_length
        return max(1, TOKENS_AT_ONCE // length) * length

    # ------------------------------------------------------------------ memory

    def sweep(self, room: int | None) -> int:
        """Most bytes of memory of the sweep, if moments of a pass have `room` (None: any)."""
        return max(self.fixed + self._moments(room), self._head())

    @cached_property
    def fixed(self) -> int:
        """A block, and of a batch what is beside the moments and the taps of weights."""
        d, length = self.model.dimensions, self.calibrate.sequence_length
        weights = max(sum(s.numel for s in specs) for specs in matrices_by_block(self.model))
        largest = max(s.numel for specs in matrices_by_block(self.model) for s in specs)
        heads = d.num_attention_heads * d.head_dim
        inside = 6 * heads + 8 * d.intermediate_size + 2 * kept_floats(d) + extra_floats(d)
        inside += 10 * d.hidden_size
        part = max(1, PART // length) * length
        at_once = min(threads(), -(-self.batch // part))
        widest = max(max(s.shape) for specs in matrices_by_block(self.model) for s in specs)
        products = threads() * PANEL * (self.batch * (FLOAT + DOUBLE) + widest * (FLOAT + DOUBLE))
        states = self.batch * 4 * max(Decoder(self.model).widths)
        floats = weights + largest + at_once * part * inside + states + self.batch * widest
        return FLOAT * floats + products

    def _moments(self, room: int | None) -> int:
        """Most bytes of moments and taps of a pass."""
        return max(
            sum(map(size, group))
            for size, stacks in self._blocks()
            for group in groups(stacks, size, room)
        )

    def passes(self, room: int | None) -> int:
        """Most backward passes of a block."""
        return max(len(groups(stacks, size, room)) for size, stacks in self._blocks())

    def _blocks(self) -> Iterator[tuple[Callable[[Stack], int], list[Stack]]]:
        """Of every block, how large a pass for a stack is, and its stacks."""
        for specs in matrices_by_block(self.model):
            shapes = {spec.part: spec.shape for spec in specs}
            size = partial(
                pass_bytes,
                shapes=shapes,
                runs=self.runs,
                output_side=self.output_side,
                tokens=self.batch,
                used=self.model.dimensions.num_experts_per_tok,
            )
            yield size, stacks_of(shapes)

    def _head(self) -> int:
        """Embedding and head, with logits of a few tokens, and the head's moments."""
        d = self.model.dimensions
        logits = 5 * threads() * LABELS_AT_ONCE * d.vocab_size
        states = self.batch * 6 * d.hidden_size
        moments = 3 * gram_bytes(d.hidden_size)
        return bytes_outside(self.model) + FLOAT * (logits + states) + moments

    # ------------------------------------------------------------------ disk

    def every(self, free: int) -> int:
        """Of how many blocks one leaves its inputs on a disk with so many bytes free: 1, unless
        all inputs would take more than a third of it. The others are made again, segment by
        segment: one more forward pass for a root of the space."""
        blocks = self.model.dimensions.num_hidden_layers
        return 1 if 3 * blocks * self._states < free else max(1, isqrt(blocks))

    @property
    def _states(self) -> int:
        """Bytes of all tokens' hidden states before one block."""
        sequences = sum(run.sequences for run in self.runs)
        return BFLOAT * sequences * self.calibrate.sequence_length * max(Decoder(self.model).widths)

    def states(self, every: int) -> int:
        """Most bytes of hidden states and gradients at once."""
        blocks = self.model.dimensions.num_hidden_layers
        inputs = -(-blocks // every) + (every if every > 1 else 0)
        return (inputs + 2 * (FLOAT // BFLOAT)) * self._states

    @cached_property
    def hessians(self) -> list[int]:
        """Bytes of H of every block."""
        return [
            sum(
                map(self._packed, (s for s in specs if (s.part,) in stacks or s.expert is not None))
            )
            for specs in matrices_by_block(self.model)
            for stacks in [stacks_of([s.part for s in specs])]
        ]

    def _packed(self, spec: WeightSpec) -> int:
        sides = spec.shape if self.output_side else spec.shape[1:]
        return sum(2 * FLOAT * n * (n + 1) // 2 for n in sides)

    def disk(self, every: int, *, kept: bool) -> Disk:
        """Of a sweep whose Hessians stay, or are deleted block by block: then `Disk.kept` is what
        there still is at its end."""
        d, blocks = self.model.dimensions, self.hessians
        outside = 2 * FLOAT * d.hidden_size**2 + 2 * FLOAT * d.vocab_size
        states = self.states(every)
        end = min(states, 5 * self._states)  # the first block's inputs and gradients
        if not kept:
            return Disk(states + max(blocks) + outside, end + max(blocks) + outside)
        whole = sum(blocks) + outside
        return Disk(max(states + max(blocks), end + whole), whole)
