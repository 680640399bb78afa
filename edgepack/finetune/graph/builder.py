"""A graph that remembers what its backward pass needs to know about its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepack.export._onnx_graph import Graph, kind

Backward = Callable[[str], str]
"""Gradient of a result → gradient of the input."""
CHUNK = 4 << 20
"""Most weights of a matrix that are float32 at once (16 MB)."""


@dataclass
class TrainingGraph(Graph):
    """Values are float32 ``[batch, time, width]`` unless said otherwise.

    `parameters` are the trained matrices ``[in, out]`` and their shapes. `opaque` are the outputs
    of nodes that are differentiated as one: `backward_of` maps their result to their input, and to
    the function from the result's gradient to the input's. `unreshaped` maps the output of a
    Reshape to the target shape that undoes it, `cut` that of a Slice of columns to the numbers of
    columns before and behind it. `computed` are the names of constants that a session
    computes when it loads.
    """

    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    backward_of: dict[str, tuple[str, Backward]] = field(default_factory=dict)
    unreshaped: dict[str, str] = field(default_factory=dict)
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    def number(self, value: float) -> str:
        """A float32 constant without dimensions."""
        return self.constant(value, np.float32)

    def whole(self, *values: int) -> str:
        """An int64 constant ``[len(values)]``."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, shape: Sequence[int], undo: Sequence[int]) -> str:
        """x in another shape; `undo` is the target shape for the way back."""
        y = self.add("Reshape", x, self.whole(*shape))
        self.unreshaped[y] = self.whole(*undo)
        return y

    def columns(self, x: str, widths: Sequence[int]) -> list[str]:
        """x ``[batch, time, Σ widths]`` cut into runs of columns."""
        found, start, whole = [], 0, sum(widths)
        for width in widths:
            found.append(self.slice(x, start, start + width, 2))
            self.cut[found[-1]] = start, whole - start - width
            start += width
        return found

    def capped(self, x: str, cap: float) -> str:
        """cap·tanh(x / cap)."""
        bent = self.add("Tanh", self.add("Mul", x, self.number(1 / cap)))
        return self.add("Mul", bent, self.number(cap))

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        """Columns start … stop−1 along an axis."""
        return self.add("Slice", x, *(self.whole(value) for value in (start, stop, axis)))

    def negative(self, x: str) -> str:
        """−x of a constant, which a session computes when it loads."""
        return self.once(f"{x}.negative", "Neg", x)

    def once(self, name: str, op: str, *inputs: str) -> str:
        """A constant made of others by one node, shared by all that ask for its name."""
        if name not in self.computed:
            self.computed.add(self.add(op, *inputs, out=name))
        return name

    def range(self, start: int, stop: int) -> str:
        """The numbers start … stop−1, int64."""
        ends = (self.constant(value, np.int64) for value in (start, stop, 1))
        return self.once(f"range.{start}.{stop}", "Range", *ends)

    def differentiated(self, x: str, forward: Backward, backward: Backward) -> str:
        """forward(x), whose nodes are differentiated as one by `backward`."""
        first = len(self.nodes)
        y = forward(x)
        self.opaque.update(name for node in self.nodes[first:] for name in node.output)
        self.backward_of[y] = x, backward
        return y

    def zero_after(self, value: str, rank: int, dtype: Any = np.float32) -> str:
        """0 of shape ``[1] * rank`` that a runtime knows only when `value` (of that many
        dimensions) is computed, because it is a < a for the first element a.

        Added to the input of a node, it makes the node wait. ONNX Runtime orders nodes depth-first
        from the outputs: without this, weights would be unpacked and blocks recomputed long before
        they are needed, and activations kept until the end.
        """
        first = self.add("Slice", value, self.whole(*[0] * rank), self.whole(*[1] * rank))
        return self.add("Cast", self.add("Less", first, first), to=kind(dtype))

    def wait(self, x: str, value: str, rank: int = 3) -> str:
        """x ``[batch, time, width]`` unchanged, known only after `value`; an element of it that is
        not a number does no harm."""
        zero = self.zero_after(value, rank)
        if rank != 3:
            zero = self.add("Reshape", zero, self.whole(1, 1, 1))
        return self.add("Add", x, zero)
