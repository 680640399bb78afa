"""How many columns of the residual stream are kept, and where.

A place is where the stream is read: 2i by the attention of block i, 2i + 1 by its feed-forward
part, 2·blocks by the head.
"""

from __future__ import annotations

import math

from edgepack.errors import RecipeError
from edgepack.recipe import Slice

ROUND_TO = {"global": 256, "per_block": 8}

READ_AT = {
    "attn_norm": 0,
    "attn_q": 0,
    "attn_k": 0,
    "attn_v": 0,
    "ffn_norm": 1,
    "ffn_gate": 1,
    "ffn_up": 1,
}
"""Role → place inside its block."""
WRITE_TO = {"attn_output": 1, "ffn_down": 2}
SHORTCUTS = {"attn_shortcut": (0, 1), "ffn_shortcut": (1, 2)}
"""Role → the places that it leads from and to."""


def place(role: str, block: int | None, blocks: int) -> int | None:
    """The place whose basis a weight reads or writes in, None where it does neither."""
    stem = role.partition(".")[0]
    if block is None:
        return 0 if stem == "token_embd" else 2 * blocks
    offset = {**READ_AT, **WRITE_TO}.get(stem)
    return None if offset is None else 2 * block + offset


def kept_width(hidden: int, options: Slice) -> int:
    """Columns to keep of `hidden`: `width`, or ``1 − sparsity`` of them, to the nearest multiple of
    `round_to`."""
    if options.width is None:
        return _rounded(hidden, options.sparsity or 0.0, options)
    if options.width > hidden:
        raise RecipeError(
            f"slice.width: {options.width} is more than the {hidden} columns that there are",
            hint=f"{hidden} keeps all of them",
        )
    return options.width


def kept_widths(hidden: int, blocks: int, options: Slice) -> tuple[int, ...]:
    """Columns to keep at every place. The head reads all of them unless it is to be sliced too
    (SliceGPT's ``do_slice_head``)."""
    if options.schedule is None:
        widths = [kept_width(hidden, options)] * (2 * blocks)
    else:
        ends = (options.schedule.attention, options.schedule.mlp)
        depths = (i / max(1, blocks - 1) for i in range(blocks))
        sparsities = (a + (b - a) * depth for depth in depths for a, b in ends)
        widths = [_rounded(hidden, sparsity, options) for sparsity in sparsities]
    return (*widths, widths[-1] if options.slice_head else hidden)


def _rounded(hidden: int, sparsity: float, options: Slice) -> int:
    step = options.round_to or ROUND_TO[options.method]
    return min(hidden, max(step, step * math.floor(hidden * (1 - sparsity) / step + 0.5)))
