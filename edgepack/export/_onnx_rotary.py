"""Rotary positions as tables of an ONNX graph: cosines and sines, for each kind of block."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepack.checkpoint.base import Dimensions
from edgepack.export._onnx_graph import Graph, kind
from edgepack.export.profiles import GraphOptions
from edgepack.model import rotary
from edgepack.model.rotary import Rotary


class Tables:
    """The tables of a graph; blocks that turn alike share theirs."""

    def __init__(self, graph: Graph, options: GraphOptions, *, neighbours: bool) -> None:
        self.graph, self.options, self.neighbours = graph, options, neighbours
        self._rotaries: dict[tuple[Any, ...], Rotary] = {}
        self._made: dict[tuple[Any, ...], tuple[str, str]] = {}

    def rotary(self, d: Dimensions) -> Rotary:
        """The positions of blocks with some dimensions, in texts as long as the graph's context."""
        key = rotary.key(d)
        if key not in self._rotaries:
            reaching = rotary.reaching(d, self.options.context)
            self._rotaries[key] = Rotary(reaching, neighbours=self.neighbours)
        return self._rotaries[key]

    def tables(self, d: Dimensions) -> tuple[str, str]:
        """Names of cos and sin of every position, ``[context, rotary_dim / 2]``."""
        key = rotary.key(d)
        if key not in self._made:
            label = f"rotary.{len(self._made)}" if self._made else "rotary"
            turns = self.rotary(d)
            self._made[key] = self._add(turns, label, "cos"), self._add(turns, label, "sin")
        return self._made[key]

    def _add(self, turns: Rotary, label: str, which: str) -> str:
        """A table, stored as coarse and fine steps that a session combines when it loads. A whole
        table would be 2 % of a small model, and not every runtime has cosines in float64."""
        g, name = self.graph, f"{label}.{which}"
        fine = 1 << (self.options.context - 1).bit_length() // 2
        frequency = turns.frequency.numpy()

        def steps(part: str, turn: Any, positions: Any, factor: float = 1.0) -> str:
            """cos or sin of some positions, float32 but computed in float64."""
            values = (factor * turn(positions * frequency)).astype(np.float32)
            return g.store(
                f"{label}.{part}.{turn.__name__}", np.float32, values.shape, lambda: values
            )

        coarse = np.arange(0, self.options.context, fine)[:, None, None]
        near = np.arange(fine)[None, :, None]
        first, second = (np.cos, np.sin) if which == "cos" else (np.sin, np.cos)
        one, other = (steps("coarse", turn, coarse, turns.factor) for turn in (first, second))
        left = g.add("Mul", one, steps("fine", np.cos, near))
        right = g.add("Mul", other, steps("fine", np.sin, near))
        turned = g.add("Sub" if which == "cos" else "Add", left, right)
        rows = g.add("Reshape", turned, g.constant([-1, len(frequency)], np.int64))
        ends = (g.constant([end], np.int64) for end in (0, self.options.context))
        g.add("Cast", g.add("Slice", rows, *ends), out=name, to=kind(self.options.dtype))
        return name
