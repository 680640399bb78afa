"""Frozen matrices of a training graph: products with them, and the gradients that pass through.

The packed codes are stored once. The forward product is MatMulNBits where it has the format. The
backward pass, dx = dy·W, unpacks rows of the same codes by GatherBlockQuantized, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepack.core.weights import WeightSpec
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import Array, kind
from edgepack.export._onnx_store import Store
from edgepack.export.values import F32
from edgepack.finetune.graph.builder import CHUNK, TrainingGraph

EXACT = 0
"""MatMulNBits' level with float32 activations. Gradients through int8 activations point elsewhere
(cosine 0.995), and rows of 128 tokens are not multiplied faster with them."""


@dataclass(frozen=True)
class Part:
    """Q, L or R of a weight, ``[out, in]``, as it is stored."""

    graph: TrainingGraph
    store: Store
    name: str
    part: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.store.shape(self.name, self.part)

    @cached_property
    def _format(self) -> str:
        known = self.store.parts[self.name]
        return str({"Q": known.Q, "L": known.L, "R": known.R}[self.part])

    @cached_property
    def _layout(self) -> pack.Layout | None:
        return pack.layout_of(self._format)

    @cached_property
    def _label(self) -> str:
        return f"{self.name.removesuffix('.weight')}.{self.part}"

    @cached_property
    def _blocks(self) -> list[str]:
        """Codes, scales and zero points if any."""
        assert self._layout is not None
        return self.store.blocks([self.name], self.part, self._layout, *self.shape)

    def product(self, x: str) -> str:
        """x·Aᵀ for x ``[batch, time, in]``."""
        return self.graph.differentiated(x, self._forward, self._backward)

    def turned_product(self, x: str) -> str:
        """x·A for x ``[batch, time, out]``."""
        return self.graph.differentiated(
            x,
            lambda x: self.graph.add("MatMul", x, self.rows(0, self.shape[0], x)),
            lambda dy: self.graph.add("FusedMatMul", dy, self.rows(0, self.shape[0], dy), transB=1),
        )

    def _forward(self, x: str) -> str:
        g, layout = self.graph, self._layout
        if layout is None:
            parts: list[str] = []
            for start, stop in self.chunks():
                rows = self.rows(start, stop, parts[-1] if parts else x)
                parts.append(g.add("FusedMatMul", x, rows, transB=1))
            return parts[0] if len(parts) == 1 else g.add("Concat", *parts, axis=-1)
        return g.add(
            "MatMulNBits",
            *(x, *self._blocks),
            K=self.shape[1],
            N=self.shape[0],
            bits=layout.computed,
            block_size=layout.size,
            accuracy_level=EXACT,
        )

    def _backward(self, dy: str) -> str:
        """dx = dy·A. Each chunk waits for the sum of those before."""
        g, total, whole = self.graph, "", self.shape[0]
        for start, stop in self.chunks():
            part = dy if stop - start == whole else g.slice(dy, start, stop, 2)
            product = g.add("MatMul", part, self.rows(start, stop, total or dy))
            total = g.add("Add", total, product) if total else product
        return total

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last row (exclusive) of the pieces that are unpacked at once."""
        rows, columns = self.shape
        step = max(1, CHUNK // columns)
        for start in range(0, rows, step):
            yield start, min(rows, start + step)

    def rows(self, start: int, stop: int, after: str) -> str:
        """Rows as float32 ``[stop − start, in]``, unpacked when `after` ``[batch, time, width]`` is
        known."""
        g = self.graph
        zero = g.zero_after(after, 3, np.int64)
        found = self.gather(g.add("Add", g.range(start, stop), zero))
        return g.add("Reshape", found, g.whole(-1, self.shape[1]))

    def gather(self, places: str) -> str:
        """The rows at indices ``[…]`` as float32 ``[…, in]`` (in blocks: ``[…, blocks, size]``)."""
        g, layout = self.graph, self._layout
        if layout is None:
            return self._gather_whole(places)
        codes, scales, *zeros = self._blocks
        return g.add(
            "GatherBlockQuantized",
            *(codes, places, self._column(scales), *map(self._zeros, zeros)),
            bits=layout.computed,
            block_size=layout.size,
            gather_axis=0,
            quantize_axis=2,
        )

    def _gather_whole(self, places: str) -> str:
        """Rows of a matrix without blocks."""
        g = self.graph
        rows, columns = self.shape
        stored = np.dtype({"int8": np.uint8, F32: np.float32}.get(self._format, np.float16))

        def values() -> Array:
            found: Array = getattr(self.store.load(self.name), self.part).codes.numpy()
            return found

        def scales() -> Array:
            found: Array = getattr(self.store.load(self.name), self.part).grid["d"].numpy()
            return found

        table = g.store(f"{self._label}.rows", stored, (rows, columns), values)
        found = g.add("Gather", table, places, axis=0)
        if self._format != "int8":
            return found if self._format == F32 else g.add("Cast", found, to=kind(np.float32))
        steps = g.store(f"{self._label}.row_scales", np.float16, (rows, 1), scales)
        wide, step = (
            g.add("Cast", each, to=kind(np.float32))
            for each in (found, g.add("Gather", steps, places, axis=0))
        )
        return g.add("Mul", g.add("Sub", wide, g.number(128)), step)

    def _column(self, x: str) -> str:
        """Fields of blocks ``[out, blocks]`` as ``[out, blocks, 1]``; a session does it once."""
        return self.graph.once(f"{x}.column", "Unsqueeze", x, self.graph.whole(-1))

    def _zeros(self, packed: str) -> str:
        """Packed zero points ``[out, bytes]`` as one byte a block, ``[out, blocks, 1]``."""
        g, layout, name = self.graph, self._layout, f"{packed}.bytes"
        if layout is not None and name not in g.computed:
            mask, bits = 2**layout.computed - 1, layout.computed
            split = [g.bits(packed, by, mask) for by in range(0, 8, bits)]
            columns = [g.add("Unsqueeze", each, g.whole(-1)) for each in split]
            joined = g.add("Reshape", g.add("Concat", *columns, axis=-1), g.whole(0, -1))
            ends = (g.whole(end) for end in (0, self.shape[1] // layout.size, 1))
            g.once(name, "Slice", joined, *ends)
        return self._column(name)


class Matrix:
    """A weight of the packed model: Q, or Q + L·R if its `factors` are frozen too."""

    def __init__(
        self, graph: TrainingGraph, store: Store, spec: WeightSpec, *, factors: bool
    ) -> None:
        self.graph, self.spec = graph, spec
        self.Q = Part(graph, store, spec.name, "Q")
        frozen = factors and store.parts[spec.name].rank > 0
        self.factors = [Part(graph, store, spec.name, part) for part in "LR" if frozen]

    def product(self, x: str) -> str:
        """x (Q + L·R)ᵀ."""
        y = self.Q.product(x)
        if not self.factors:
            return y
        left, right = self.factors
        return self.graph.add("Add", y, left.product(right.product(x)))

    def rows(self, start: int, stop: int, after: str) -> str:
        """Rows as float32 ``[stop − start, in]``, unpacked when `after` is known."""
        return self._with_factors(
            self.Q.rows(start, stop, after), lambda left: left.rows(start, stop, after), after
        )

    def gather(self, places: str, after: str) -> str:
        """The rows at indices ``[n]`` as float32 ``[n, in]``."""

        def flat(part: Part) -> str:
            shape = self.graph.whole(-1, part.shape[1])
            return self.graph.add("Reshape", part.gather(places), shape)

        return self._with_factors(flat(self.Q), flat, after)

    def _with_factors(self, rows: str, read: Callable[[Part], str], after: str) -> str:
        if not self.factors:
            return rows
        left, right = self.factors
        dense = right.rows(0, right.shape[0], after)
        return self.graph.add("Add", rows, self.graph.add("MatMul", read(left), dense))
