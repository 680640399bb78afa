"""What a training graph knows of positions: masks, rotary positions, temperatures of queries.
Blocks that are alike share theirs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.base import Dimensions
from edgepack.export._onnx_graph import Array, kind
from edgepack.finetune.graph.builder import TrainingGraph
from edgepack.model import rotary
from edgepack.model.rotary import Rotary

HIDDEN = -1e9
"""Added to the attention logits of later tokens."""


class Positions:
    """The positions of ``input_ids``, of which a row has at most `context`. `groups` is the number
    of queries that share a key."""

    def __init__(
        self, graph: TrainingGraph, family: Architecture, context: int, groups: int
    ) -> None:
        self.graph, self.family, self.context, self.groups = graph, family, context, groups
        self.learned = "position_embd" in family.outside
        self._rotaries: dict[tuple[Any, ...], Rotary] = {}
        self._shared: dict[tuple[Any, ...], str] = {}
        self.length = self._length()

    def turns(self, d: Dimensions) -> bool:
        """Whether blocks with some dimensions have rotary positions."""
        return not self.learned and d.partial_rotary_factor > 0

    def _length(self) -> str:
        """The number of tokens of a row, int64 without dimensions."""
        g = self.graph
        g.scope = "length"
        return g.add("Gather", g.add("Shape", "input_ids"), g.constant(1, np.int64), axis=0)

    def places(self, first: int = 0) -> str:
        """The positions ``[time]`` from `first` on, int64."""
        g = self.graph
        start, step = (g.constant(number, np.int64) for number in (first, 1))
        end = g.add("Add", self.length, start) if first else self.length
        return g.add("Range", start, end, step)

    def mask(self, window: int | None) -> str:
        """What is added to attention logits, ``[group · time, time]``: queries see no later keys,
        and none that a sliding window hides. Shared by all blocks that have the same window."""
        g, key = self.graph, ("mask", window)
        if key in self._shared:
            return self._shared[key]
        scope, g.scope = g.scope, f"mask.{window}"
        place = self.places()
        age = g.add("Sub", g.add("Unsqueeze", place, g.whole(1)), place)
        hidden = g.add("Less", age, g.constant(0, np.int64))
        if window is not None:
            late = g.add("GreaterOrEqual", age, g.constant(window, np.int64))
            hidden = g.add("Or", hidden, late)
        bias = g.add("Where", hidden, g.number(HIDDEN), g.number(0))
        self._shared[key] = g.add("Tile", bias, g.whole(self.groups, 1))
        g.scope = scope
        return self._shared[key]

    def _rotary(self, d: Dimensions) -> Rotary:
        """The rotary positions of blocks with some dimensions, for texts up to the context."""
        if (key := rotary.key(d)) not in self._rotaries:
            turns = Rotary(rotary.reaching(d, self.context), neighbours=self.family.neighbours)
            self._rotaries[key] = turns
        return self._rotaries[key]

    def turned(self, x: str, d: Dimensions, heads: int) -> str:
        """Queries or keys ``[batch, time, heads · head_dim]`` with rotary positions."""
        return self.graph.add(
            "RotaryEmbedding",
            *(x, self.graph.whole(0), *self._tables(d)),
            num_heads=heads,
            rotary_embedding_dim=d.rotary_dim,
            interleaved=int(self.family.neighbours),
        )

    def _tables(self, d: Dimensions) -> tuple[str, str]:
        """cos and sin of every position, ``[context, rotary_dim / 2]``; of each kind of block."""
        turns = self._rotary(d)
        number = list(self._rotaries.values()).index(turns)
        label, shape = f"rotary.{number}" if number else "rotary", (self.context, d.rotary_dim // 2)

        def values(index: int) -> Array:
            table = turns(0, self.context)[index]
            half = table[:, ::2] if turns.neighbours else table[:, : d.rotary_dim // 2]
            found: Array = half.contiguous().numpy()
            return found

        cos, sin = (
            self.graph.store(f"{label}.{which}", np.float32, shape, partial(values, index))
            for index, which in enumerate(("cos", "sin"))
        )
        return cos, sin

    def tempered(self, q: str, d: Dimensions) -> str:
        """Queries that grow with their position (Ministral 3)."""
        if not self.turns(d):
            return q
        turns = self._rotary(d)
        if not turns.beta or self.context <= turns.original:
            return q
        g, key = self.graph, ("temperature", turns.beta, turns.original)
        if key not in self._shared:
            scope, g.scope = g.scope, "temperature"
            spans = g.add("Div", self.places(), g.constant(turns.original, np.int64))
            grown = g.add("Add", g.add("Cast", spans, to=kind(np.float32)), g.number(1))
            grown = g.add("Mul", g.add("Log", grown), g.number(turns.beta))
            factor = g.add("Add", grown, g.number(1))
            self._shared[key] = g.add("Unsqueeze", factor, g.whole(1))
            g.scope = scope
        return g.add("Mul", q, self._shared[key])
