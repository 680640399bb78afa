"""A decoder as an ONNX graph: the forward pass of `edgepack.decoder`, in ONNX Runtime's operators.

Inputs and outputs are named as optimum, onnxruntime-genai and Transformers.js expect them, keys and
values interleaved, with numbers where those need numbers. Rows may be padded on the left: what
`attention_mask` hides is hidden by a bias, and rotary positions, of which only differences count,
count the padding too. (GroupQueryAttention has an input for positions, but heeds it only where one
token stands behind others.) Learned positions, and rotary ones of part of a head, are an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from torch import Tensor

from edgepack import plugins
from edgepack.checkpoint import Checkpoint
from edgepack.decoder import Rotary
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import Array, Graph
from edgepack.export._parts import Parts
from edgepack.weights import FactoredWeight, QuantizedTensor, WeightSpec

HIDDEN = -1e9
"""Added to the attention logits of what is masked."""
ACCURACY = 4
"""MatMulNBits multiplies int8 activations; other levels have no fast kernels for 2 and 8 bits."""
LORA = {"R": "lora_A", "L": "lora_B"}
"""Factor → name behind the module's; they are stored transposed, as the graph multiplies them."""
ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "silu": ("QuickGelu", {"alpha": 1.0}),
    "relu": ("Relu", {}),
    "gelu_new": ("FastGelu", {}),
}


Load = Callable[[str], FactoredWeight]


def decoder_graph(
    checkpoint: Checkpoint,
    parts: Mapping[str, Parts],
    load: Load,
    context: int,
    norms: Mapping[str, Tensor] | None = None,
) -> Graph:
    """The graph of a model: input_ids, attention_mask, perhaps position_ids, past keys and values →
    logits, present keys and values.

    `parts` says of every matrix how it is stored, `load` reads one; `norms` replaces some norms and
    biases. Positions end at `context`. Factors in f16 may be replaced when it runs.
    """
    builder = _Builder(checkpoint, parts, lru_cache(maxsize=4)(load), context, norms or {})
    builder.build()
    return builder.graph


class _Builder:
    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: Mapping[str, Parts],
        load: Load,
        context: int,
        norms: Mapping[str, Tensor],
    ) -> None:
        self.graph = Graph()
        self.checkpoint, self.parts, self.load = checkpoint, parts, load
        self.context, self.norms = context, norms
        self.family, self.d = checkpoint.architecture, checkpoint.dimensions
        self.stream, self.pending = "", ""
        self.wide: set[str] = set()
        self.learned = "position_embd" in self.family.outside
        self.turns = not self.learned and self.d.partial_rotary_factor == 1

    # ------------------------------------------------------------------ the model

    def build(self) -> None:
        g, d = self.graph, self.d
        rows: tuple[int | str, ...] = ("batch_size", "sequence_length")
        g.input("input_ids", np.int64, rows)
        g.input("attention_mask", np.int64, ("batch_size", "total_sequence_length"))
        if not self.turns:
            g.input("position_ids", np.int64, rows)
        self._masks()
        self.stream = self._embed()
        g.output("logits", np.float32, (*rows, d.vocab_size))
        for block in range(d.num_hidden_layers):
            self._block(block)
        g.scope = ""
        self._head(self._norm("output_norm", None))

    def _masks(self) -> None:
        """Lengths and bias, shared by all blocks."""
        g = self.graph
        g.scope = "mask"
        shape = g.add("Shape", "attention_mask")
        total = g.add("Gather", shape, g.constant(1, np.int64), axis=0)
        self.total = g.add("Cast", total, to=_kind(np.int32))
        last = g.add("Sub", self.total, g.constant(1, np.int32))
        batch = g.add("Shape", "input_ids", start=0, end=1)
        self.lengths = g.add("Expand", last, batch)
        mask = g.add("Cast", "attention_mask", to=_kind(np.float32))
        absent = g.add("Sub", g.constant(1, np.float32), mask)
        bias = g.add("Mul", absent, g.constant(HIDDEN, np.float32))
        bias = g.add("Unsqueeze", bias, g.constant([1, 2], np.int64))
        one = g.constant([1], np.int64)
        length = g.add("Shape", "input_ids", start=1, end=2)
        everyone = g.add("Concat", one, one, length, one, axis=0)
        self.bias = g.add("Expand", bias, everyone)

    def _embed(self) -> str:
        g, spec = self.graph, self._spec("token_embd")
        g.scope = "embed"
        x = self._gather(spec, "input_ids")
        if not self.learned:
            return x
        first = g.constant(self.family.unused_positions, np.int64)
        places = g.add("Add", "position_ids", first)
        return g.add("Add", x, self._gather(self._spec("position_embd"), places))

    def _head(self, x: str) -> None:
        g = self.graph
        name = self._spec("token_embd" if self.d.tie_word_embeddings else "output").name
        bias = self.family.outside.get("output.bias", "")
        if bias not in self.checkpoint.specs:
            self._apply(x, [name], out="logits")
            return
        g.add("Add", self._apply(x, [name]), self._vector(bias), out="logits")

    # ------------------------------------------------------------------ a block

    def _block(self, block: int) -> None:
        self.graph.scope = f"layers.{block}"
        h = self._norm("attn_norm", block)
        out = self._attention(h, block)
        if self._spec("ffn_norm", block, missing=True) is None:
            out = self.graph.add("Add", out, self._mlp(h, block))
            self._write(out, "attn_shortcut", block)
            return
        self._write(out, "attn_shortcut", block)
        self._write(self._mlp(self._norm("ffn_norm", block), block), "ffn_shortcut", block)

    def _write(self, out: str, shortcut: str, block: int) -> None:
        """Add to the residual stream, beside a shortcut matrix where there is one."""
        self._resolve()
        spec = self._spec(shortcut, block, missing=True)
        if spec is not None:
            self.stream = self.graph.add("MatMul", self.stream, self._plain(spec, turned=False))
        self.pending = out

    def _resolve(self) -> None:
        """Carry out an addition that no norm has taken along."""
        if self.pending:
            self.stream, self.pending = self.graph.add("Add", self.stream, self.pending), ""

    def _norm(self, role: str, block: int | None) -> str:
        g, spec = self.graph, self._spec(role, block)
        bias = self._spec(f"{role}.bias", block, missing=True)
        eps, width, of = self.d.rms_norm_eps, spec.shape[0], self.d.hidden_size
        if bias is not None:
            self._resolve()
            inputs = (self.stream, self._vector(spec.name), self._vector(bias.name))
            return g.add("LayerNormalization", *inputs, axis=-1, epsilon=eps)
        # what slicing left of a wider stream is divided by the mean over the original's width
        gain = self._vector(spec.name, math.sqrt(of / width))
        eps *= of / width
        if not self.pending:
            return g.add("SimplifiedLayerNormalization", self.stream, gain, axis=-1, epsilon=eps)
        inputs = (self.stream, self.pending, gain)
        op, outs = "SkipSimplifiedLayerNormalization", ("*", "", "", g._fresh("Sum"))
        out, _, _, self.stream = g.add_many(op, *inputs, outs=outs, epsilon=eps)
        self.pending = ""
        return out

    def _mlp(self, h: str, block: int) -> str:
        op, attributes = ACTIVATIONS[self.family.activation]
        if self._spec("ffn_gate", block, missing=True) is None:
            inner = self.graph.add(op, self._linear(h, ["ffn_up"], block), **attributes)
            return self._linear(inner, ["ffn_down"], block)
        gate = self.graph.add(op, self._linear(h, ["ffn_gate"], block), **attributes)
        inner = self.graph.add("Mul", gate, self._linear(h, ["ffn_up"], block))
        return self._linear(inner, ["ffn_down"], block)

    # ------------------------------------------------------------------ attention

    def _attention(self, h: str, block: int) -> str:
        g, d = self.graph, self.d
        shape = ("batch_size", d.num_key_value_heads, "past_sequence_length", d.head_dim)
        grown = (*shape[:2], "total_sequence_length", d.head_dim)
        past, present = [], []
        for what in ("key", "value"):
            past.append(g.input(f"past_key_values.{block}.{what}", np.float32, shape))
            present.append(f"present.{block}.{what}")
            g.output(present[-1], np.float32, grown)
        q, k, v = self._projections(h, block)
        if not self.turns and not self.learned:
            q, k = self._turned(q, d.num_attention_heads), self._turned(k, d.num_key_value_heads)
        caches = [self._rotary("Cos"), self._rotary("Sin")] if self.turns else ["", ""]
        inputs = (q, k, v, *past, self.lengths, self.total, *caches)
        out, _, _ = g.add_many(
            "GroupQueryAttention",
            *(*inputs, "", self.bias),
            outs=("*", *present),
            num_heads=d.num_attention_heads,
            kv_num_heads=d.num_key_value_heads,
            scale=d.head_dim**-0.5,
            do_rotary=int(self.turns),
            local_window_size=d.sliding_window or -1,
        )
        return self._linear(out, ["attn_output"], block)

    def _projections(self, h: str, block: int) -> tuple[str, str, str]:
        """Queries, keys and values; all in the first, where one product gives them."""
        roles = ["attn_q", "attn_k", "attn_v"]
        known = [self.parts[self._spec(role, block).name] for role in roles]
        normed = [self._spec(f"{role}_norm", block, missing=True) for role in roles]
        if (
            (self.turns or self.learned)
            and not any(normed)
            and len(set(known)) == 1
            and not known[0].rank
        ):
            return self._linear(h, roles, block), "", ""
        heads = (self._linear(h, [role], block) for role in roles)
        q, k, v = (
            y if spec is None else self._head_norm(y, spec)
            for y, spec in zip(heads, normed, strict=True)
        )
        return q, k, v

    def _head_norm(self, y: str, spec: WeightSpec) -> str:
        """RMSNorm of every head by itself (Qwen3)."""
        g, d = self.graph, self.d
        heads = g.add("Reshape", y, g.constant([0, 0, -1, d.head_dim], np.int64))
        gain, eps = self._vector(spec.name), d.rms_norm_eps
        heads = g.add("SimplifiedLayerNormalization", heads, gain, axis=-1, epsilon=eps)
        return g.add("Reshape", heads, g.constant([0, 0, -1], np.int64))

    def _turned(self, x: str, heads: int) -> str:
        """Rotary positions in a part of every head (Phi)."""
        width = int(self.d.head_dim * self.d.partial_rotary_factor)
        caches = (self._rotary("Cos"), self._rotary("Sin"))
        return self.graph.add(
            "RotaryEmbedding",
            *(x, "position_ids", *caches),
            num_heads=heads,
            rotary_embedding_dim=width,
        )

    def _rotary(self, which: str) -> str:
        """cos or sin of every position ``[context, width / 2]``, computed when a session loads: as
        tensors in a file they would be 2 % of a small model."""
        g, name = self.graph, f"rotary_{which}"
        if name not in self.wide:
            self.wide.add(name)
            steps = [g.constant(value, np.int64) for value in (0, self.context, 1)]
            places = g.add("Cast", g.add("Range", *steps), to=_kind(np.float64))
            places = g.add("Unsqueeze", places, g.constant([1], np.int64))
            frequency = g.constant(Rotary(self.d).frequency.numpy(), np.float64)
            turned = g.add(which, g.add("Mul", places, frequency))
            g.add("Cast", turned, out=name, to=_kind(np.float32))
        return name

    # ------------------------------------------------------------------ weights

    def _spec(self, role: str, block: int | None = None, *, missing: bool = False) -> WeightSpec:
        """A weight by its role; None (with `missing`) where the model has none."""
        known = {**self.family.block, **self.family.optional}
        names = self.family.outside if block is None else known
        name = self.family.hf_name(role, block) if role in names else ""
        return self.checkpoint.specs.get(name) if missing else self.checkpoint.specs[name]  # type: ignore[return-value]

    def _vector(self, name: str, factor: float = 1.0) -> str:
        """A norm's gains or a bias."""

        def load() -> Array:
            value = self.norms[name] if name in self.norms else self.checkpoint.tensor(name)
            found: Array = (value.float() * factor).numpy()
            return found

        return self.graph.store(name, np.float32, self.checkpoint.specs[name].shape, load)

    def _linear(self, x: str, roles: Sequence[str], block: int) -> str:
        """x Wᵀ + b; the weights of several roles below one another."""
        specs = [self._spec(role, block) for role in roles]
        y = self._apply(x, [spec.name for spec in specs])
        biases = [self._spec(f"{role}.bias", block, missing=True) for role in roles]
        if biases[0] is None:
            return y
        names = [self._vector(bias.name) for bias in biases]
        bias = names[0] if len(names) == 1 else self.graph.add("Concat", *names, axis=0)
        return self.graph.add("Add", y, bias)

    def _apply(self, x: str, names: Sequence[str], out: str = "") -> str:
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
        if how is None:
            spec = self.checkpoint.specs[names[0]]
            if len(names) > 1:
                split = [self._matmul(x, [name], part, form) for name in names]
                return g.add("Concat", *split, axis=-1)
            if spec.role == "token_embd":  # the table that rows are taken from as well
                return g.add("FusedMatMul", x, self._plain(spec, turned=False), out=out, transB=1)
            return g.add("MatMul", x, self._plain(spec, part), out=out)
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
        found = [codes, self._widened(half)]
        if how.zeros:
            width = -(-blocks * how.computed // 8)
            zeros = g.store(
                f"{name}.zeros", np.uint8, (rows, width), lambda: pack.zeros(read(), how)
            )
            found.append(zeros)
        return found

    def _widened(self, half: str) -> str:
        """A stored fp16 tensor as float32, once; a session does it when it loads."""
        name = f"{half}.f32"
        if name not in self.wide:
            self.wide.add(self.graph.add("Cast", half, out=name, to=_kind(np.float32)))
        return name

    def _plain(self, spec: WeightSpec, part: str = "Q", *, turned: bool = True) -> str:
        """An unquantized matrix as float32, ``[in, out]`` if `turned`."""
        rows, columns = self._shape(spec.name, part)

        def load() -> Array:
            value = self._tensor([spec.name], part).codes
            found: Array = (value.T if turned else value).numpy()
            return found

        shape = (columns, rows) if turned else (rows, columns)
        if part == "Q":
            return self._widened(self.graph.store(spec.name, np.float16, shape, load))
        module = spec.name.removesuffix(".weight")
        name = self.graph.store(f"{module}.{LORA[part]}", np.float16, shape, load)
        rank = f"{module}.rank"
        self.graph.replaceable(name, (columns, rank) if part == "R" else (rank, rows))
        return self._widened(name)

    def _gather(self, spec: WeightSpec, places: str) -> str:
        """Rows of a table."""
        g, form = self.graph, plugins.find("formats", self.parts[spec.name].Q)
        how = pack.layout(form)
        if how is None:
            return g.add("Gather", self._plain(spec, turned=False), places, axis=0)
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


def _kind(dtype: type[np.generic]) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
