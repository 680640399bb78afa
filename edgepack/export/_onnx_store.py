"""A model's matrices and vectors as tensors of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat, WeightSpec
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import Array, Graph, Stored, kind
from edgepack.export.profiles import GraphOptions
from edgepack.export.values import F32

Load = Callable[[str], FactoredWeight]
ROOM = ".adapter"
"""Suffix of the module's name in empty factors, which are there for adapters."""
LORA = {"R": "lora_A", "L": "lora_B"}
"""Factor → suffix of the module's name; factors are stored transposed, as the graph needs them."""


class Store:
    """Stores weights in a graph, each part once. `parts` gives the format of every matrix, `load`
    reads one, and `norms` replaces some norms and biases."""

    def __init__(
        self,
        graph: Graph,
        checkpoint: Checkpoint,
        parts: Mapping[str, WeightFormat],
        load: Load,
        norms: Mapping[str, Tensor],
        options: GraphOptions,
    ) -> None:
        self.graph, self.checkpoint, self.parts, self.load = graph, checkpoint, parts, load
        self.norms, self.options = norms, options
        self.wide: set[str] = set()

    def shape(self, name: str, part: str) -> tuple[int, int]:
        """Rows and columns of Q, L or R of a weight."""
        rows, columns = self.checkpoint.specs[name].shape
        rank = self.parts[name].rank
        return {"Q": (rows, columns), "L": (rows, rank), "R": (rank, columns)}[part]

    def vector(self, name: str, factor: float = 1.0) -> str:
        """A norm's gains or a bias."""

        def load() -> Array:
            value = self.norms[name] if name in self.norms else self.checkpoint.tensor(name)
            with np.errstate(over="ignore"):  # infinities are refused when they are written
                found: Array = (value.float() * factor).numpy().astype(self.options.dtype)
            return found

        return self.graph.store(name, self.options.dtype, self.checkpoint.specs[name].shape, load)

    def widen(self, half: str) -> str:
        """A stored fp16 tensor in the type that the graph computes in."""
        return half if self.options.half else self.float32(half)

    def float32(self, half: str) -> str:
        """A stored fp16 tensor as float32; a session converts it once, when it loads."""
        name = f"{half}.f32"
        if name not in self.wide:
            self.wide.add(self.graph.add("Cast", half, out=name, to=kind(np.float32)))
        return name

    def plain(self, spec: WeightSpec, part: str = "Q", *, turned: bool = True) -> str:
        """An unquantized matrix, ``[in, out]`` if `turned`."""
        rows, columns = self.shape(spec.name, part)

        def load() -> Array:
            value = self._tensor([spec.name], part).codes
            found: Array = (value.T if turned else value).numpy()
            return found

        shape = (columns, rows) if turned else (rows, columns)
        if part == "Q" and self.parts[spec.name].Q == F32:
            if self.options.half:
                raise ValueError(f"{spec.name}: float32 in a graph of float16")
            return self.graph.store(spec.name, np.float32, shape, load)
        if part == "Q":
            return self.widen(self.graph.store(spec.name, np.float16, shape, load))
        return self._factor(spec.name.removesuffix(".weight"), part, shape, load)

    def needs_room(self, name: str) -> bool:
        """Whether a weight of the blocks takes adapters, but has no factors that they can replace.
        (With L or R in blocks, only one of them could be replaced, or none.)"""
        known, block = self.parts[name], self.checkpoint.specs[name].block
        return self.options.adapters and block is not None and (known.L, known.R) != ("f16", "f16")

    def room(self, name: str) -> tuple[str, str]:
        """Zero factors ``[in, 1]`` and ``[1, out]`` of a weight, for adapters, in the type that the
        graph computes in: converting them would take longer than their product. Rank 1, because
        not all runtimes multiply matrices of rank 0."""
        rows, columns = self.checkpoint.specs[name].shape
        stem, dtype = name.removesuffix(".weight") + ROOM, self.options.dtype
        A, B = (
            self._factor(stem, part, shape, partial(np.zeros, shape, dtype), dtype)
            for part, shape in {"R": (columns, 1), "L": (1, rows)}.items()
        )
        return A, B

    def _factor(
        self,
        stem: str,
        part: str,
        shape: tuple[int, int],
        load: Callable[[], Array],
        dtype: Any = np.float16,
    ) -> str:
        """L or R, transposed, of any rank: a caller may give others."""
        stored = Stored(f"{stem}.{LORA[part]}", np.dtype(dtype), shape, load)
        rank = f"{stem}.rank"
        named = (shape[0], rank) if part == "R" else (rank, shape[1])
        required = self.options.profile.given_factors
        name = self.graph.factor(stored, named, required=required)
        return self.widen(name) if stored.dtype == np.float16 else name

    def whole_rows(self, names: Sequence[str], rows: int, columns: int) -> tuple[str, str]:
        """Codes of format int8 as uint8 ``[in, out]``, where 128 means 0, and their scales as fp16
        ``[out]``. uint8, because on CPUs with AVX2 and without VNNI, products of uint8 and int8 add
        two at a time in 16 bits, which overflows."""
        read, g = partial(self._tensor, names, "Q"), self.graph

        def codes() -> Array:
            found: Array = read().codes.T.numpy()
            return found

        def scales() -> Array:
            found: Array = read().grid["d"].flatten().numpy()
            return found

        name = _label(names, "Q")
        weight = g.store(f"{name}.codes", np.uint8, (columns, rows), codes)
        return weight, g.store(f"{name}.scales", np.float16, (rows,), scales)

    def blocks(
        self, names: Sequence[str], part: str, layout: pack.Layout, rows: int, columns: int
    ) -> list[str]:
        """Codes ``[out, blocks, bytes]``, scales ``[out, blocks]`` and zero points if any, for
        MatMulNBits."""
        g, blocks = self.graph, columns // layout.size
        read = partial(self._tensor, names, part)
        name = _label(names, part)

        def plane(suffix: str, bits: int, make: Callable[[QuantizedTensor], Array]) -> str:
            shape = (rows, blocks, layout.size * bits // 8)
            return g.store(f"{name}.{suffix}", np.uint8, shape, lambda: make(read()))

        if layout.bits == 3:
            low = plane("codes_low", 2, lambda q: pack.low_plane(q, layout))
            high = plane("codes_high", 1, lambda q: pack.high_plane(q, layout))
            codes = self._joined(low, high)
        else:
            codes = plane("codes", layout.bits, lambda q: pack.codes(q, layout))
        half = g.store(
            f"{name}.scales", np.float16, (rows, blocks), lambda: pack.scales(read(), layout)
        )
        found = [codes, self.widen(half)]
        if layout.zeros:
            width = -(-blocks * layout.computed // 8)
            zeros = g.store(
                f"{name}.zeros", np.uint8, (rows, width), lambda: pack.zeros(read(), layout)
            )
            found.append(zeros)
        return found

    def columns(
        self, names: Sequence[str], part: str, layout: pack.Layout, rows: int, columns: int
    ) -> list[str]:
        """Codes ``[in, out]``, scales ``[blocks, out]`` and zero points if any, for
        DequantizeLinear."""
        g, blocks, int4 = self.graph, columns // layout.size, layout.bits == 4
        read, dtype = partial(self._tensor, names, part), np.uint8 if layout.zeros else np.int8
        name = _label(names, part)

        def codes() -> Array:
            return pack.columns(read(), layout)

        def scales() -> Array:
            return pack.scales(read(), layout).T

        found = [g.store(f"{name}.codes", dtype, (columns, rows), codes, int4=int4)]
        found.append(self.widen(g.store(f"{name}.scales", np.float16, (blocks, rows), scales)))
        if layout.zeros:
            zeros = partial(pack.column_zeros, layout=layout)
            shape = (blocks, rows)
            found.append(g.store(f"{name}.zeros", dtype, shape, lambda: zeros(read()), int4=int4))
        return found

    def _tensor(self, names: Sequence[str], part: str) -> QuantizedTensor:
        found = [getattr(self.load(name), part) for name in names]
        return pack.stack(found) if len(found) > 1 else found[0]

    def _joined(self, low: str, high: str) -> str:
        """Planes of 2 and 1 bits joined to codes of 4 bits; see `_onnx_pack.low_plane`."""
        g = self.graph
        lows = [g.bits(low, by, 0x33) for by in (0, 2)]
        highs = [g.bits(high, by, 0x44) for by in (-2, -1, 0, 1)]
        joined = [g.add("Concat", *parts, axis=-1) for parts in (lows, highs)]
        return g.add("BitwiseOr", *joined)


def _label(names: Sequence[str], part: str) -> str:
    """Name of the tensors of a part of concatenated weights."""
    return f"{names[0].removesuffix('.weight')}.{part}" + ("+" if len(names) > 1 else "")
