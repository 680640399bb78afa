"""The number of columns of the residual stream that are kept at every place.

A place is a point where the stream is read: by the attention of a block, by its feed-forward part
(unless both read after the same norm), and last by the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.architectures.base import ATTENTION_READS, FEED_READS, START, Architecture
from edgepack.checkpoint import Checkpoint
from edgepack.errors import RecipeError
from edgepack.recipe.sections import Slice

ROUND_TO = {"global": 256, "per_block": 8}

ATTENTION = dict.fromkeys(("attn_norm", *ATTENTION_READS), 0)


@dataclass(frozen=True)
class Places:
    """The places of a block. `count` is their number; by role, `read` is the place that a weight
    reads at, `write` the place that it writes to, and `shortcuts` the start and end of a shortcut.
    """

    count: int
    read: Mapping[str, int]
    write: Mapping[str, int]
    shortcuts: Mapping[str, tuple[int, int]]

    def place_of(self, role: str, block: int | None, blocks: int) -> int | None:
        """The place whose basis a weight reads or writes in, None if it does neither."""
        stem = role.partition(".")[0]
        if block is None:
            return 0 if stem in START else self.count * blocks
        offset = {**self.read, **self.write}.get(stem)
        return None if offset is None else self.count * block + offset


IN_TURN = Places(
    2,
    ATTENTION | dict.fromkeys(("ffn_norm", *FEED_READS), 1),
    {"attn_output": 1, "ffn_down": 2},
    {"attn_shortcut": (0, 1), "ffn_shortcut": (1, 2)},
)
SIDE_BY_SIDE = Places(
    1,
    ATTENTION | dict.fromkeys(FEED_READS, 0),
    {"attn_output": 1, "ffn_down": 1},
    {"attn_shortcut": (0, 1)},
)


def places(architecture: Architecture) -> Places:
    """The places of a family's blocks."""
    return SIDE_BY_SIDE if architecture.parallel else IN_TURN


def kept_width(hidden: int, options: Slice) -> int:
    """Columns to keep of `hidden`: `width`, or ``1 − sparsity`` of them, rounded to the nearest
    multiple of `round_to`."""
    if options.width is None:
        return _rounded(hidden, options.sparsity or 0.0, options)
    if options.width > hidden:
        raise RecipeError(
            f"slice.width: {options.width} is more than the {hidden} columns that there are",
            hint=f"{hidden} keeps all of them",
        )
    return options.width


def kept_widths(checkpoint: Checkpoint, options: Slice) -> tuple[int, ...]:
    """Columns to keep at every place. The head reads all of them unless it is to be sliced too
    (SliceGPT's ``do_slice_head``)."""
    count, d = places(checkpoint.architecture).count, checkpoint.dimensions
    hidden, blocks = d.hidden_size, d.num_hidden_layers
    if options.schedule is None:
        widths = [kept_width(hidden, options)] * (count * blocks)
    else:
        ends = (options.schedule.attention, options.schedule.mlp)[:count]
        depths = (i / max(1, blocks - 1) for i in range(blocks))
        sparsities = (a + (b - a) * depth for depth in depths for a, b in ends)
        widths = [_rounded(hidden, sparsity, options) for sparsity in sparsities]
    return (*widths, widths[-1] if options.slice_head else hidden)


def _rounded(hidden: int, sparsity: float, options: Slice) -> int:
    step = options.round_to or ROUND_TO[options.method]
    return min(hidden, max(step, step * math.floor(hidden * (1 - sparsity) / step + 0.5)))
