"""A model's matrices in an ONNX graph: stored, multiplied with, looked up in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edgepack import plugins
from edgepack.checkpoint import Checkpoint
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import Array, Graph, kind
from edgepack.export._parts import Parts
from edgepack.weights import FactoredWeight, QuantizedTensor, WeightSpec

Load = Callable[[str], FactoredWeight]
ACCURACY = 4
"""MatMulNBits multiplies int8 activations; other levels have no fast kernels for 2 and 8 bits."""
LORA = {"R": "lora_A", "L": "lora_B"}
"""Factor → name behind the module's; they are stored transposed, as the graph multiplies them."""


class Weights:
    """The weights of a checkpoint by their roles. `parts` says of every matrix how it is stored,
    `load` reads one; `norms` replaces some norms and biases."""

    def __init__(
        self,
        graph: Graph,
        checkpoint: Checkpoint,
        parts: Mapping[str, Parts],
        load: Load,
        norms: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.checkpoint, self.parts, self.load = graph, checkpoint, parts, load
        self.norms, self.family = norms, checkpoint.architecture
        self.wide: set[str] = set()
        self.small: dict[str, tuple[str, str]] = {}

    def find(self, role: str, block: int | None = None) -> WeightSpec | None:
        """A weight by its role; None where the model has none."""
        known = {**self.family.block, **self.family.optional}
        names = self.family.outside if block is None else known
        return (
            self.checkpoint.specs.get(self.family.hf_name(role, block)) if role in names else None
        )

    def spec(self, role: str, block: int | None = None) -> WeightSpec:
        """A weight that the model must have."""
        found = self.find(role, block)
        assert found is not None, role
        return found

    def vector(self, name: str, factor: float = 1.0) -> str:
        """A norm's gains or a bias."""

        def load() -> Array:
            value = self.norms[name] if name in self.norms else self.checkpoint.tensor(name)
            found: Array = (value.float() * factor).numpy()
            return found

        return self.graph.store(name, np.float32, self.checkpoint.specs[name].shape, load)

    def linear(self, x: str, roles: Sequence[str], block: int) -> str:
        """x Wᵀ + b; the weights of several roles below one another."""
        specs = [self.spec(role, block) for role in roles]
        y = self.apply(x, [spec.name for spec in specs])
        biases = [self.find(f"{role}.bias", block) for role in roles]  # all have one, or none
        names = [self.vector(bias.name) for bias in biases if bias]
        if not names:
            return y
        bias = names[0] if len(names) == 1 else self.graph.add("Concat", *names, axis=0)
        return self.graph.add("Add", y, bias)

    def apply(self, x: str, names: Sequence[str], out: str = "") -> str:
        """x (Q + L·R)ᵀ."""
        known = self.parts[names[0]]
        y = self._matmul(x, names, "Q", known.Q, "" if known.rank else out)
        if not known.rank:
            return y
        assert known.L is not None
        assert known.R is not None
        low = self._matmul(x, names, "R", known.R)  # where there are factors, names is one name
        return self.graph.add("Add", y, self._matmul(low, names, "L", known.L), out=out)

    def _matmul(self, x: str, names: Sequence[str], part: str, form: str, out: str = "") -> str:
        """x Aᵀ for a part A of weights that lie below one another."""
        g = self.graph
        shapes = [self._shape(name, part) for name in names]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        how = pack.layout(plugins.find("formats", form))
        if form == "int8":
            return self._integer_matmul(x, names, rows, columns, out)
        if how is None:
            spec = self.checkpoint.specs[names[0]]
            if len(names) > 1:
                split = [self._matmul(x, [name], part, form) for name in names]
                return g.add("Concat", *split, axis=-1)
            if spec.role == "token_embd":  # the table that rows are taken from as well
                return g.add("FusedMatMul", x, self.plain(spec, turned=False), out=out, transB=1)
            return g.add("MatMul", x, self.plain(spec, part), out=out)
        inputs = self._initializers(names, part, how, rows, columns)
        return g.add(
            "MatMulNBits",
            *(x, *inputs),
            out=out,
            K=columns,
            N=rows,
            bits=how.computed,
            block_size=how.size,
            accuracy_level=ACCURACY,
        )

    def _integer_matmul(
        self, x: str, names: Sequence[str], rows: int, columns: int, out: str
    ) -> str:
        """x Wᵀ in 8-bit integers: rows of x are rounded with a scale of their own (one for all of
        x, as DynamicQuantizeLinear has it, drowns all tokens in the first one's outliers)."""
        g = self.graph
        small, step = self._rounded(x)
        weight, scales = self._whole_rows(names, rows, columns)
        product = g.add("MatMulInteger", small, weight, g.constant(128, np.uint8))
        product = g.add("Mul", g.add("Cast", product, to=kind(np.float32)), step)
        return g.add("Mul", product, scales, out=out)

    def _rounded(self, x: str) -> tuple[str, str]:
        """x as uint8 around 128, and its scales ``[…, 1]``; once for all that reads it."""
        g = self.graph
        if x not in self.small:
            most = g.add("ReduceMax", g.add("Abs", x), g.constant([-1], np.int64), keepdims=1)
            most = g.add("Max", most, g.constant(1e-20, np.float32))
            step = g.add("Mul", most, g.constant(1 / 127, np.float32))
            whole = g.add("Round", g.add("Div", x, step))
            shifted = g.add("Add", whole, g.constant(128, np.float32))
            self.small[x] = g.add("Cast", shifted, to=kind(np.uint8)), step
        return self.small[x]

    def _whole_rows(self, names: Sequence[str], rows: int, columns: int) -> tuple[str, str]:
        """Weights of format int8 as int8 ``[in, out]``, and their scales as float32 ``[out]``."""
        read, g = partial(self._tensor, names, "Q"), self.graph

        def codes() -> Array:
            found: Array = (read().codes ^ 128).view(torch.int8).T.numpy()  # less 128
            return found

        def scales() -> Array:
            found: Array = read().grid["d"].flatten().numpy()
            return found

        name = names[0].removesuffix(".weight") + ("+" if len(names) > 1 else "")
        weight = g.store(f"{name}.Q.codes", np.int8, (columns, rows), codes)
        return weight, self.widened(g.store(f"{name}.Q.scales", np.float16, (rows,), scales))

    def _shape(self, name: str, part: str) -> tuple[int, int]:
        rows, columns = self.checkpoint.specs[name].shape
        rank = self.parts[name].rank
        return {"Q": (rows, columns), "L": (rows, rank), "R": (rank, columns)}[part]

    def _tensor(self, names: Sequence[str], part: str) -> QuantizedTensor:
        found = [getattr(self.load(name), part) for name in names]
        return pack.stacked(found) if len(found) > 1 else found[0]

    def _initializers(
        self, names: Sequence[str], part: str, how: pack.Layout, rows: int, columns: int
    ) -> list[str]:
        """Codes, scales and perhaps zero points, as MatMulNBits takes them."""
        g, blocks = self.graph, columns // how.size
        read = partial(self._tensor, names, part)
        name = f"{names[0].removesuffix('.weight')}.{part}" + ("+" if len(names) > 1 else "")

        def plane(suffix: str, bits: int, make: Callable[[QuantizedTensor], Array]) -> str:
            shape = (rows, blocks, how.size * bits // 8)
            return g.store(f"{name}.{suffix}", np.uint8, shape, lambda: make(read()))

        if how.bits == 3:
            low = plane("codes_low", 2, lambda q: pack.low_plane(q, how))
            high = plane("codes_high", 1, lambda q: pack.high_plane(q, how))
            codes = self._joined(low, high)
        else:
            codes = plane("codes", how.bits, lambda q: pack.codes(q, how))
        half = g.store(
            f"{name}.scales", np.float16, (rows, blocks), lambda: pack.scales(read(), how)
        )
        found = [codes, self.widened(half)]
        if how.zeros:
            width = -(-blocks * how.computed // 8)
            zeros = g.store(
                f"{name}.zeros", np.uint8, (rows, width), lambda: pack.zeros(read(), how)
            )
            found.append(zeros)
        return found

    def widened(self, half: str) -> str:
        """A stored fp16 tensor as float32, once; a session does it when it loads."""
        name = f"{half}.f32"
        if name not in self.wide:
            self.wide.add(self.graph.add("Cast", half, out=name, to=kind(np.float32)))
        return name

    def plain(self, spec: WeightSpec, part: str = "Q", *, turned: bool = True) -> str:
        """An unquantized matrix as float32, ``[in, out]`` if `turned`."""
        rows, columns = self._shape(spec.name, part)

        def load() -> Array:
            value = self._tensor([spec.name], part).codes
            found: Array = (value.T if turned else value).numpy()
            return found

        shape = (columns, rows) if turned else (rows, columns)
        if part == "Q":
            return self.widened(self.graph.store(spec.name, np.float16, shape, load))
        module = spec.name.removesuffix(".weight")
        name = self.graph.store(f"{module}.{LORA[part]}", np.float16, shape, load)
        rank = f"{module}.rank"
        self.graph.replaceable(name, (columns, rank) if part == "R" else (rank, rows))
        return self.widened(name)

    def gather(self, spec: WeightSpec, places: str) -> str:
        """Rows of a table."""
        g, form = self.graph, plugins.find("formats", self.parts[spec.name].Q)
        how = pack.layout(form)
        if form.name == "int8":
            weight, scales = self._whole_rows([spec.name], *spec.shape)
            found = g.add("Transpose", g.add("Gather", weight, places, axis=1), perm=[1, 2, 0])
            sizes = g.add("Unsqueeze", g.add("Gather", scales, places), g.constant([2], np.int64))
            return g.add("Mul", g.add("Cast", found, to=kind(np.float32)), sizes)
        if how is None:
            return g.add("Gather", self.plain(spec, turned=False), places, axis=0)
        rows, columns = spec.shape
        codes, *rest = self._initializers([spec.name], "Q", how, rows, columns)
        flat = g.add("Reshape", codes, g.constant([rows, columns * how.computed // 8], np.int64))
        return g.add(
            "GatherBlockQuantized",
            *(flat, places, *rest),
            bits=how.computed,
            block_size=how.size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _joined(self, low: str, high: str) -> str:
        """Planes of 2 and 1 bits as codes of 4; see `_onnx_pack.low_plane`."""
        g = self.graph

        def shifted(x: str, by: int, mask: int) -> str:
            if by:
                direction = "RIGHT" if by > 0 else "LEFT"
                x = g.add("BitShift", x, g.constant(abs(by), np.uint8), direction=direction)
            return g.add("BitwiseAnd", x, g.constant(mask, np.uint8))

        lows = [shifted(low, by, 0x33) for by in (0, 2)]
        highs = [shifted(high, by, 0x44) for by in (-2, -1, 0, 1)]
        joined = [g.add("Concat", *parts, axis=-1) for parts in (lows, highs)]
        return g.add("BitwiseOr", *joined)
