"""What the residual stream carries behind the hidden state, for blocks that need more than it.

Gemma 4's blocks get an input of their own each, which depends on the tokens alone, and the last
ones read keys and values of an earlier block. Both are columns of the stream behind the hidden
state: first the inputs of this and all later blocks, then keys and values from the block that makes
them up to the last that reads them. So every block stands alone, hidden states on disk hold all
that it needs, and gradients of shared keys and values add up over their readers by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.architectures.base import SHARES_WITH
from edgepack.checkpoint.base import Dimensions
from edgepack.checkpoint.sized_kinds import maker_of


@dataclass(frozen=True)
class Carried:
    """The columns of one block's input: `hidden` of the hidden state, then `inputs` for the block
    itself. It reads keys and values in the columns `keys`, and passes the columns `kept` on; if it
    `makes` shared keys and values, it puts its own behind them."""

    hidden: int
    inputs: int = 0
    keys: slice | None = None
    kept: tuple[slice, ...] = ()
    makes: bool = False

    def own_input(self, x: Tensor) -> Tensor:
        """The block's own input ``[batch, time, inputs]``."""
        return x[..., self.hidden : self.hidden + self.inputs]

    def passed_on(self, x: Tensor, hidden: Tensor, made: Shared) -> Tensor:
        """The next block's input: the new hidden state, and what this block's input carries on."""
        parts = [hidden, *(x[..., columns] for columns in self.kept)]
        return torch.cat([*parts, *([made.columns()] if self.makes else [])], dim=-1)

    def shared(self, x: Tensor, heads: int) -> Shared:
        """The keys and values of `heads` heads that the block reads, none if it has its own."""
        return Shared() if self.keys is None else Shared.of(x[..., self.keys], heads)


@dataclass
class Shared:
    """Keys, behind their rotation, and values ``[batch, kv_heads, time, head_dim]`` of a block:
    those that it reads, or a place for its own."""

    pair: tuple[Tensor, Tensor] | None = field(default=None)

    @classmethod
    def of(cls, columns: Tensor, heads: int) -> Shared:
        """Those in columns of the stream ``[batch, time, 2 · kv_heads · head_dim]``."""
        k, v = (
            torch.unflatten(part, -1, (heads, -1)).transpose(1, 2)
            for part in columns.chunk(2, dim=-1)
        )
        return cls((k, v))

    def columns(self) -> Tensor:
        """The inverse of `of`."""
        assert self.pair is not None
        return torch.cat([part.transpose(1, 2).flatten(2) for part in self.pair], dim=-1)


@dataclass(frozen=True)
class _Section:
    """Columns of keys and values: from the block `maker` to the block `last`."""

    maker: int
    last: int
    width: int
    readers: tuple[int, ...]


def with_inputs(x: Tensor, rows: Tensor, projection: Tensor, gain: Tensor, d: Dimensions) -> Tensor:
    """The first block's input: x and the inputs of all blocks, which are what the token's row of
    their table and its embedding say, (norm(P x / √hidden) + √width · row) / √2.

    x ``[…, hidden]`` embeddings as the first block gets them, rows ``[…, blocks · width]``,
    projection ``[blocks · width, hidden]``, gain ``[width]``. Source: ``Gemma4TextModel``.
    """
    width = d.hidden_size_per_layer_input
    said = functional.linear(x, projection) * d.hidden_size**-0.5
    said = torch.unflatten(said, -1, (-1, width))
    said = functional.rms_norm(said, (width,), gain, d.rms_norm_eps).flatten(-2)
    return torch.cat([x, (said + math.sqrt(width) * rows) * math.sqrt(0.5)], dim=-1)


def plan(d: Dimensions) -> tuple[Carried, ...]:
    """What every block's input carries."""
    sections = _sections(d)
    return tuple(_block(d, sections, index) for index in range(d.num_hidden_layers))


def widths(d: Dimensions) -> tuple[int, ...]:
    """Columns of the stream before every block and, last, before the head."""
    sections = _sections(d)
    blocks = d.num_hidden_layers
    return tuple(
        d.hidden_size
        + (blocks - index) * d.hidden_size_per_layer_input
        + sum(s.width for s in sections if s.maker < index <= s.last)
        for index in range(blocks + 1)
    )


def extra_floats(d: Dimensions) -> int:
    """Numbers of a position that a block and its backward pass keep, at most, beyond those of a
    model whose blocks are all like `d` and whose stream is the hidden state; 0 in other models."""
    inner = max(d.block(i).intermediate_size for i in range(d.num_hidden_layers))
    columns = max(widths(d)) - d.hidden_size
    return 8 * (inner - d.intermediate_size) + 4 * (columns + d.hidden_size_per_layer_input)


def _sections(d: Dimensions) -> list[_Section]:
    found = []
    for kind in SHARES_WITH:
        readers = tuple(i for i, own in enumerate(d.layer_types) if own == kind)
        if not readers:
            continue
        maker = maker_of(d.layer_types, readers[0])
        assert maker is not None
        made = d.block(maker)
        width = 2 * made.num_key_value_heads * made.head_dim
        found.append(_Section(maker, readers[-1], width, readers))
    return sorted(found, key=lambda section: section.maker)


def _block(d: Dimensions, sections: Sequence[_Section], index: int) -> Carried:
    inputs = d.hidden_size_per_layer_input
    at = d.hidden_size + (d.num_hidden_layers - index) * inputs
    later = slice(d.hidden_size + inputs, at)
    keys, kept = None, [later] if later.stop > later.start else []
    for section in sections:
        if not section.maker < index <= section.last:
            continue
        columns = slice(at, at + section.width)
        at = columns.stop
        keys = columns if index in section.readers else keys
        if index < section.last:
            kept.append(columns)
    makes = any(section.maker == index for section in sections)
    return Carried(d.hidden_size, inputs, keys, tuple(kept), makes)
