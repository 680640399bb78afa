"""A decoder's products with weights and lookups in tables, as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.core.weights import WeightSpec
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import kind
from edgepack.export._onnx_store import Store

ACCURACY = 4
"""MatMulNBits' level with int8 activations; others have no fast kernels for 2 and 8 bits."""
QDQ_BITS = (4, 8)
"""Bits of a code that DequantizeLinear has a type for (2 bits only in recent versions)."""


class Weights:
    """The weights of a `Store` by their roles."""

    def __init__(self, store: Store) -> None:
        self.store, self.graph, self.options = store, store.graph, store.options
        self.checkpoint, self.parts = store.checkpoint, store.parts
        self.family = store.checkpoint.architecture
        self.small: dict[str, tuple[str, str]] = {}

    def find(self, role: str, block: int | None = None) -> WeightSpec | None:
        """A weight by its role; None if the model has none."""
        known = {**self.family.block, **self.family.optional}
        names = self.family.outside if block is None else known
        return (
            self.checkpoint.specs.get(self.family.hf_name(role, block)) if role in names else None
        )

    def spec(self, role: str, block: int | None = None) -> WeightSpec:
        """A weight that the model must have."""
        found = self.find(role, block)
        if found is None:
            raise ValueError(f"a {self.family.name} model without {role}")
        return found

    # ------------------------------------------------------------------ products

    def linear(self, x: str, roles: Sequence[str], block: int) -> str:
        """x Wᵀ + b, for the concatenated weights of several roles."""
        specs = [self.spec(role, block) for role in roles]
        y = self.apply(x, [spec.name for spec in specs])
        biases = [self.find(f"{role}.bias", block) for role in roles]  # all have one, or none
        names = [self.store.vector(bias.name) for bias in biases if bias]
        if not names:
            return y
        bias = names[0] if len(names) == 1 else self.graph.add("Concat", *names, axis=0)
        return self.graph.add("Add", y, bias)

    def apply(self, x: str, names: Sequence[str], out: str = "") -> str:
        """x (Q + L·R)ᵀ, plus an empty pair of factors where an adapter needs one."""
        if not self.store.needs_room(names[0]):
            return self._product(x, names, out)
        y = self._product(x, names)
        A, B = self.store.room(names[0])
        low = self.graph.add("MatMul", x, A)
        return self.graph.add("Add", y, self.graph.add("MatMul", low, B), out=out)

    def _product(self, x: str, names: Sequence[str], out: str = "") -> str:
        """x (Q + L·R)ᵀ."""
        known = self.parts[names[0]]
        y = self._matmul(x, names, "Q", known.Q, "" if known.rank else out)
        if known.L is None or known.R is None:
            return y
        low = self._matmul(x, names, "R", known.R)  # with factors, names is one name
        return self.graph.add("Add", y, self._matmul(low, names, "L", known.L), out=out)

    def _matmul(self, x: str, names: Sequence[str], part: str, fmt: str, out: str = "") -> str:
        """x Aᵀ for a part A of concatenated weights."""
        g = self.graph
        shapes = [self.store.shape(name, part) for name in names]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        layout = pack.layout_of(fmt)
        if fmt == "int8":
            return self._integer_matmul(x, names, rows, columns, out)
        if layout is None:
            spec = self.checkpoint.specs[names[0]]
            if len(names) > 1:
                split = [self._matmul(x, [name], part, fmt) for name in names]
                return g.add("Concat", *split, axis=-1)
            if spec.role == "token_embd":  # rows are looked up in the same table
                table = self.store.plain(spec, turned=False)
                return g.add("FusedMatMul", x, table, out=out, transB=1)
            return g.add("MatMul", x, self.store.plain(spec, part), out=out)
        if self.options.qdq and self._is_free(names) and layout.bits in QDQ_BITS:
            inputs = self.store.columns(names, part, layout, rows, columns)
            weight = g.add("DequantizeLinear", *inputs, axis=0, block_size=layout.size)
            return g.add("MatMul", x, weight, out=out)
        inputs = self.store.blocks(names, part, layout, rows, columns)
        return g.add(
            "MatMulNBits",
            *(x, *inputs),
            out=out,
            K=columns,
            N=rows,
            bits=layout.computed,
            block_size=layout.size,
            accuracy_level=ACCURACY,
        )

    def _is_free(self, names: Sequence[str]) -> bool:
        """Whether only products read a weight; rows cannot be looked up in DequantizeLinear's."""
        return self.checkpoint.specs[names[0]].role != "token_embd"

    def _integer_matmul(
        self, x: str, names: Sequence[str], rows: int, columns: int, out: str
    ) -> str:
        """x Wᵀ in 8-bit integers. Each row of x is rounded with its own scale: with one scale for
        all of x, as in DynamicQuantizeLinear, the first token's outliers leave no precision for the
        others."""
        g = self.graph
        small, step = self._rounded(x)
        weight, scales = self.store.whole_rows(names, rows, columns)
        zero = g.constant(128, np.uint8)
        product = g.add("MatMulInteger", small, weight, zero, zero)
        product = g.add("Mul", g.add("Cast", product, to=kind(np.float32)), step)
        scaled = (product, self.store.float32(scales))
        if not self.options.half:
            return g.add("Mul", *scaled, out=out)
        return g.add("Cast", g.add("Mul", *scaled), out=out, to=kind(np.float16))

    def _rounded(self, x: str) -> tuple[str, str]:
        """x as uint8 around 128, and its scales ``[…, 1]``; computed once for all products."""
        g = self.graph
        if x not in self.small:
            wide = g.add("Cast", x, to=kind(np.float32)) if self.options.half else x
            most = g.add("ReduceMax", g.add("Abs", wide), g.constant([-1], np.int64), keepdims=1)
            most = g.add("Max", most, g.constant(1e-20, np.float32))
            step = g.add("Mul", most, g.constant(1 / 127, np.float32))
            whole = g.add("Round", g.add("Div", wide, step))
            shifted = g.add("Add", whole, g.constant(128, np.float32))
            self.small[x] = g.add("Cast", shifted, to=kind(np.uint8)), step
        return self.small[x]

    # ------------------------------------------------------------------ lookups

    def gather(self, spec: WeightSpec, places: str) -> str:
        """Rows of a table, at the indices `places`."""
        g, fmt = self.graph, self.parts[spec.name].Q
        layout = pack.layout_of(fmt)
        rows, columns = spec.shape
        if fmt == "int8":
            weight, scales = self.store.whole_rows([spec.name], rows, columns)
            found = g.add("Transpose", g.add("Gather", weight, places, axis=1), perm=[1, 2, 0])
            sizes = g.add("Gather", self.store.widen(scales), places)
            sizes = g.add("Unsqueeze", sizes, g.constant([2], np.int64))
            wide = g.add("Cast", found, to=kind(self.options.dtype))
            zero = g.constant(128, self.options.dtype)
            return g.add("Mul", g.add("Sub", wide, zero), sizes)
        if layout is None:
            return g.add("Gather", self.store.plain(spec, turned=False), places, axis=0)
        codes, *rest = self.store.blocks([spec.name], "Q", layout, rows, columns)
        if self.options.profile.plain_lookup:
            return self._unpacked_rows(layout, columns, places, codes, *rest)
        flat = g.add("Reshape", codes, g.constant([rows, columns * layout.computed // 8], np.int64))
        return g.add(
            "GatherBlockQuantized",
            *(flat, places, *rest),
            bits=layout.computed,
            block_size=layout.size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _unpacked_rows(
        self,
        layout: pack.Layout,
        columns: int,
        places: str,
        codes: str,
        scales: str,
        zeros: str = "",
    ) -> str:
        """Rows of a packed table, unpacked by operators that every runtime has."""
        g, blocks, bits = self.graph, columns // layout.size, layout.computed

        def unpacked(packed: str, count: int, shape: Sequence[int]) -> str:
            """`count` codes of each row as numbers, reshaped to `shape`."""
            own = g.add("Gather", packed, places, axis=0)
            split = [g.bits(own, by, 2**bits - 1) for by in range(0, 8, bits)]
            last = g.constant([-1], np.int64)
            parts = g.add("Concat", *(g.add("Unsqueeze", s, last) for s in split), axis=-1)
            flat = g.add("Reshape", parts, g.constant([0, 0, -1], np.int64))
            ends = (g.constant([end], np.int64) for end in (0, count, -1))
            used = g.add("Reshape", g.add("Slice", flat, *ends), g.constant(shape, np.int64))
            return g.add("Cast", used, to=kind(self.options.dtype))

        found = unpacked(codes, columns, (0, 0, blocks, layout.size))
        middle = g.constant(2 ** (bits - 1), self.options.dtype)
        zero = unpacked(zeros, blocks, (0, 0, blocks, 1)) if zeros else middle
        sizes = g.add("Gather", scales, places, axis=0)
        sizes = g.add("Unsqueeze", sizes, g.constant([-1], np.int64))
        value = g.add("Mul", g.add("Sub", found, zero), sizes)
        return g.add("Reshape", value, g.constant([0, 0, columns], np.int64))
