"""The memory of a training run, planned: what it needs, and how to make it fit.

Counted are the process, trained parameters, and everything that grows with the positions of a
micro-batch. Of the packed file only what is being decoded is in memory.
`benchmarks/finetune_memory.py` holds it against measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.adapters.base import PackedBase
from edgepack.errors import EdgepackError
from edgepack.finetune import general
from edgepack.finetune.activations import BYTES, Kind
from edgepack.finetune.loss import LOGITS_AT_ONCE
from edgepack.recipe.sections import Finetune

PROCESS, A_TOKEN = 330 << 20, 2000
"""Bytes of Python, torch and their code in training; of the tokenizer for each of its tokens."""
USUAL_POSITIONS = 512
"""Positions of a micro-batch where memory is no concern."""
FLOAT = 4
ALLOCATOR = 1.25
"""What the allocator keeps beside what is in use."""


@dataclass(frozen=True)
class Layout:
    """How a run uses memory: positions of a micro-batch, where activations wait, and the peak that
    is expected of it in bytes."""

    positions: int
    kind: Kind
    peak: int


def choose(base: PackedBase, names: Sequence[str], options: Finetune, longest: int) -> Layout:
    """The fastest layout that `options.memory` allows, for examples of up to `longest` tokens.

    Only exact layouts are chosen by themselves: fewer positions at once, then activations on disk.
    Raises `EdgepackError` where none fits.
    """
    sizes = [USUAL_POSITIONS, USUAL_POSITIONS // 2, USUAL_POSITIONS // 4, longest]
    positions = sorted({max(longest, size) for size in sizes}, reverse=True)
    kinds: list[Kind] = [options.activations] if options.activations else ["memory", "disk"]
    layouts = [
        Layout(count, kind, peak(base, names, options, count, kind))
        for kind in kinds
        for count in positions
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


def peak(
    base: PackedBase, names: Sequence[str], options: Finetune, positions: int, kind: Kind
) -> int:
    """Bytes of the process at its peak."""
    own = _parameters(base, names, options) + _activations(base, positions, kind)
    own = max(own, _writing(base))
    process = PROCESS + A_TOKEN * base.checkpoint.dimensions.vocab_size
    return int(process + ALLOCATOR * own) + _teachers(base, options)


def _writing(base: PackedBase) -> int:
    """Keys and values of the general text that is written before."""
    d = base.checkpoint.dimensions
    positions = general.AT_ONCE * (general.LENGTH + 1) * d.num_hidden_layers
    return FLOAT * 2 * positions * d.num_key_value_heads * d.head_dim


def _teachers(base: PackedBase, options: Finetune) -> int:
    """The untuned model's hidden states of general text."""
    size = general.REPLAYED * general.LENGTH * base.checkpoint.dimensions.hidden_size
    return FLOAT * size if options.replay else 0


def _parameters(base: PackedBase, names: Sequence[str], options: Finetune) -> int:
    """Masters, gradients, the best so far, and moments."""
    count = 0
    for name in names:
        rank = base.ranks.get(name, 0) if options.mode == "factors" else options.r
        count += rank * sum(base.checkpoint.specs[name].shape)
    copies = 3 if options.held_out or options.validation else 2
    moments = 2 * FLOAT if options.optimizer_states == "float32" else 2
    return count * (copies * FLOAT + moments)


def _activations(base: PackedBase, positions: int, kind: Kind) -> int:
    """Block inputs, one block's inside, one decoded matrix, a run of logits."""
    d = base.checkpoint.dimensions
    saved = d.num_hidden_layers * d.hidden_size * BYTES[kind]
    heads = (d.num_attention_heads + 2 * d.num_key_value_heads) * d.head_dim
    inside = FLOAT * (8 * d.hidden_size + 4 * heads + 6 * d.intermediate_size)
    shapes = (s.shape for s in base.checkpoint.specs.values() if s.block is not None)
    widest = max(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    return int(positions * (saved + inside)) + FLOAT * widest + 4 * FLOAT * LOGITS_AT_ONCE
