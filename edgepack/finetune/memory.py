"""The memory of a training run, planned: what it needs, and how to make it fit.

Counted are the process, trained parameters, and everything that grows with the positions of a
micro-batch. Of the packed file only what is being decoded is in memory.
`benchmarks/finetune_memory.py` holds it against measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.checkpoint import Checkpoint, Dimensions
from edgepack.errors import EdgepackError
from edgepack.finetune import general
from edgepack.finetune.activations import BYTES, Kind
from edgepack.finetune.loss import LOGITS_AT_ONCE
from edgepack.model.carried import extra_floats, widths
from edgepack.model.gated_delta import kept_floats
from edgepack.recipe.training import Finetune

PROCESS, A_TOKEN = 330 << 20, 2000
"""Bytes of Python, torch and their code in training; of the tokenizer for each of its tokens."""
USUAL_POSITIONS = 512
"""Positions of a micro-batch where memory is no concern."""
FLOAT = 4
ALLOCATOR = 1.25
"""What the allocator keeps beside what is in use."""


@dataclass(frozen=True)
class Packed:
    """What the memory of a run depends on: the packed model's dimensions, and the ranks of L·R by
    weight. A plan knows both before there are any files."""

    model: Checkpoint
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Layout:
    """How a run uses memory: positions of a micro-batch, where activations wait, and the bytes that
    are expected of the process before it trains, and of training."""

    positions: int
    kind: Kind
    process: int
    own: int

    @property
    def peak(self) -> int:
        """Bytes of the process at its peak."""
        return self.process + self.own


def choose_layout(packed: Packed, names: Sequence[str], options: Finetune, longest: int) -> Layout:
    """The fastest layout that `options.memory` allows, for examples of up to `longest` tokens.

    Only exact layouts are chosen by themselves: fewer positions at once, then activations on disk.
    Raises `EdgepackError` where none fits.
    """
    sizes = [USUAL_POSITIONS, USUAL_POSITIONS // 2, USUAL_POSITIONS // 4, longest]
    positions = sorted({max(longest, size) for size in sizes}, reverse=True)
    kinds: list[Kind] = [options.activations] if options.activations else ["memory", "disk"]
    layouts = [
        _layout(packed, names, options, count, kind) for kind in kinds for count in positions
    ]
    fitting = [x for x in layouts if options.memory is None or x.peak <= options.memory]
    if fitting:
        return fitting[0]
    least = min(layout.peak for layout in layouts)
    raise EdgepackError(
        f"finetune.memory: {(options.memory or 0) / 1e6:.0f} MB are too few for examples of "
        f"{longest} tokens, which take {least / 1e6:.0f} MB",
        hint="shorter examples, fewer target_modules, a smaller r, or optimizer_states: int8",
    )


def _layout(
    packed: Packed, names: Sequence[str], options: Finetune, positions: int, kind: Kind
) -> Layout:
    model, d = packed.model, packed.model.dimensions
    training = _parameters(packed, names, options) + _activations(model, positions, kind)
    own = int(ALLOCATOR * max(training, _writing(d))) + _teachers(d, options)
    return Layout(positions, kind, PROCESS + A_TOKEN * d.vocab_size, own)


def _writing(d: Dimensions) -> int:
    """Keys and values of the general text that is written before."""
    positions = general.AT_ONCE * (general.LENGTH + 1) * d.num_hidden_layers
    return FLOAT * 2 * positions * d.num_key_value_heads * d.head_dim


def _teachers(d: Dimensions, options: Finetune) -> int:
    """The untuned model's hidden states of general text."""
    size = general.REPLAYED * general.LENGTH * d.hidden_size
    return FLOAT * size if options.replay else 0


def _parameters(packed: Packed, names: Sequence[str], options: Finetune) -> int:
    """Masters, gradients, the best so far, and moments."""
    count = 0
    for name in names:
        rank = packed.ranks.get(name, 0) if options.mode == "factors" else options.r
        count += rank * sum(packed.model.specs[name].shape)
    copies = 3 if options.held_out or options.validation else 2
    moments = 2 * FLOAT if options.optimizer_states == "float32" else 2
    return count * (copies * FLOAT + moments)


def _activations(model: Checkpoint, positions: int, kind: Kind) -> int:
    """Block inputs, one block's inside, one decoded matrix, a run of logits."""
    d = model.dimensions
    saved = sum(widths(d)[:-1]) * BYTES[kind]
    heads = (d.num_attention_heads + 2 * d.num_key_value_heads) * d.head_dim
    inside = FLOAT * (
        8 * d.hidden_size + 4 * heads + 6 * d.intermediate_size + kept_floats(d) + extra_floats(d)
    )
    shapes = (s.shape for s in model.specs.values() if s.block is not None)
    widest = max(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    return int(positions * (saved + inside)) + FLOAT * widest + 4 * FLOAT * LOGITS_AT_ONCE
