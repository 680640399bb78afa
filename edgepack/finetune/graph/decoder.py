"""The forward pass of `model.block` as ONNX nodes that `autodiff` has rules for.

Queries of one group share keys, so they are one long list of queries ``[batch, kv_heads, group ·
time, head_dim]``: then no product broadcasts, and no gradient has to be summed over a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from edgepack.core.weights import WeightSpec
from edgepack.export._onnx_graph import Array
from edgepack.export._onnx_store import Store
from edgepack.export._onnx_weights import Weights
from edgepack.export.profiles import GraphOptions
from edgepack.finetune.graph.base import Base
from edgepack.finetune.graph.builder import TrainingGraph
from edgepack.finetune.graph.matrices import Matrix
from edgepack.finetune.graph.options import Options, Parameter
from edgepack.model.rotary import Rotary

HIDDEN = -1e9
"""Added to the attention logits of later tokens."""


class Decoder:
    """Adds the parts of a decoder to a graph with inputs ``input_ids [batch, time]``, whose
    matrices `trained` (by name) are in the graph."""

    def __init__(
        self, graph: TrainingGraph, base: Base, options: Options, trained: list[Parameter]
    ) -> None:
        self.graph, self.options = graph, options
        self.d, self.family = base.checkpoint.dimensions, base.checkpoint.architecture
        self.context = options.length or min(options.context, self.d.max_position_embeddings)
        settings = GraphOptions(self.context)
        self.store = Store(graph, base.checkpoint, base.formats, base.load, {}, settings)
        self.weights = Weights(self.store)
        self.matrices: dict[str, Matrix] = {}
        self.trained = {parameter.weight for parameter in trained}
        self.groups = self.d.num_attention_heads // self.d.num_key_value_heads
        self.learned = "position_embd" in self.family.outside
        self.length = self._length()
        self.mask = self._mask()

    # ------------------------------------------------------------------ the model

    def _length(self) -> str:
        """The number of tokens of a row, int64 without dimensions."""
        g = self.graph
        g.scope = "length"
        return g.add("Gather", g.add("Shape", "input_ids"), g.constant(1, np.int64), axis=0)

    def _mask(self) -> str:
        """What is added to attention logits, ``[group · time, time]``: queries see no later keys,
        and none that a sliding window hides."""
        g = self.graph
        zero, one = (g.constant(number, np.int64) for number in (0, 1))
        g.scope = "mask"
        place = g.add("Range", zero, self.length, one)
        age = g.add("Sub", g.add("Unsqueeze", place, g.whole(1)), place)
        hidden = g.add("Less", age, zero)
        if self.d.sliding_window is not None:
            window = g.constant(self.d.sliding_window, np.int64)
            hidden = g.add("Or", hidden, g.add("GreaterOrEqual", age, window))
        bias = g.add("Where", hidden, g.number(HIDDEN), g.number(0))
        return g.add("Tile", bias, g.whole(self.groups, 1))

    def embed(self) -> str:
        """The first block's input."""
        g = self.graph
        g.scope = "embed"
        table = self.matrix(self.weights.spec("token_embd")).Q
        x = g.add("Reshape", table.gather("input_ids"), g.whole(0, 0, table.shape[1]))
        if not self.learned:
            return x
        first, one = g.constant(self.family.unused_positions, np.int64), g.constant(1, np.int64)
        places = g.add("Range", first, g.add("Add", self.length, first), one)
        table = self.matrix(self.weights.spec("position_embd")).Q
        rows = g.add("Reshape", table.gather(places), g.whole(-1, table.shape[1]))
        return g.add("Add", x, rows)

    def output(self) -> tuple[Matrix, str | None]:
        """The head's matrix ``[vocab, hidden]``, and its bias if any."""
        spec = self.weights.spec("token_embd" if self.d.tie_word_embeddings else "output")
        bias = self.family.outside.get("output.bias", "")
        known = bias in self.weights.checkpoint.specs
        return self.matrix(spec), self.store.vector(bias) if known else None

    def matrix(self, spec: WeightSpec) -> Matrix:
        """A frozen matrix; with its factors, unless these are trained."""
        if spec.name not in self.matrices:
            frozen = self.options.mode == "stack" or spec.name not in self.trained
            self.matrices[spec.name] = Matrix(self.graph, self.store, spec, factors=frozen)
        return self.matrices[spec.name]

    # ------------------------------------------------------------------ a block

    def block(self, x: str, block: int) -> str:
        """x → the next block's input."""
        g = self.graph
        h = self.norm("attn_norm", x, block)
        a = self._attention(h, block)
        stream = self._shortcut("attn_shortcut", x, block)
        if self.weights.find("ffn_norm", block) is None:
            return g.add("Add", g.add("Add", stream, a), self._mlp(h, block))
        x = g.add("Add", stream, a)
        m = self._mlp(self.norm("ffn_norm", x, block), block)
        return g.add("Add", self._shortcut("ffn_shortcut", x, block), m)

    def norm(self, role: str, x: str, block: int | None) -> str:
        """RMSNorm, or LayerNorm where there is a bias."""
        spec, bias = self.weights.spec(role, block), self.weights.find(f"{role}.bias", block)
        eps, width, of = self.d.rms_norm_eps, spec.shape[0], self.d.hidden_size
        if bias is None:
            return self._rms_norm(x, spec, math.sqrt(of / width), eps * of / width)
        vectors = (self.store.vector(name) for name in (spec.name, bias.name))
        op, outs = "LayerNormalization", ("*", "*", "*")
        return self.graph.add_many(op, x, *vectors, outs=outs, axis=-1, epsilon=eps)[0]

    def _rms_norm(self, x: str, spec: WeightSpec, factor: float, eps: float) -> str:
        gain, op = self.store.vector(spec.name, factor), "SimplifiedLayerNormalization"
        return self.graph.add_many(op, x, gain, outs=("*", "*"), axis=-1, epsilon=eps)[0]

    def _shortcut(self, role: str, x: str, block: int) -> str:
        """x, in the next basis if the model is sliced per block."""
        spec = self.weights.find(role, block)
        return x if spec is None else self.matrix(spec).Q.turned_product(x)

    def _linear(self, role: str, x: str, block: int) -> str:
        """x (Q + L·R)ᵀ + b, and the product with a trained pair."""
        g, spec = self.graph, self.weights.spec(role, block)
        y = self.matrix(spec).product(x)
        bias = self.weights.find(f"{role}.bias", block)
        if bias is not None:
            y = g.add("Add", y, self.store.vector(bias.name))
        if spec.name not in self.trained:
            return y
        module = spec.name.removesuffix(".weight")
        low = g.add("MatMul", x, f"{module}.lora_A")
        return g.add("Add", y, g.add("MatMul", low, f"{module}.lora_B"))

    def _mlp(self, h: str, block: int) -> str:
        act = ACTIVATIONS[self.family.activation]
        up = self._linear("ffn_up", h, block)
        if self.weights.find("ffn_gate", block) is None:
            return self._linear("ffn_down", act(self.graph, up), block)
        gate = act(self.graph, self._linear("ffn_gate", h, block))
        return self._linear("ffn_down", self.graph.add("Mul", gate, up), block)

    # ------------------------------------------------------------------ attention

    def _attention(self, h: str, block: int) -> str:
        g, d = self.graph, self.d
        heads, width = d.num_key_value_heads, d.head_dim
        q, k, v = (self._linear(role, h, block) for role in ("attn_q", "attn_k", "attn_v"))
        q = self._turn(self._head_norm("attn_q_norm", q, block), d.num_attention_heads)
        k = self._turn(self._head_norm("attn_k_norm", k, block), heads)
        q = g.reshape(q, (0, 0, heads, self.groups, width), (0, 0, -1))
        q = g.add("Transpose", q, perm=[0, 2, 3, 1, 4])
        q = g.reshape(q, (0, 0, -1, width), (0, 0, self.groups, -1, width))
        k, v = (g.reshape(x, (0, 0, heads, width), (0, 0, -1)) for x in (k, v))
        k, v = (g.add("Transpose", x, perm=[0, 2, 1, 3]) for x in (k, v))
        logits = g.add("FusedMatMul", q, k, transB=1, alpha=width**-0.5)
        weights = g.add("Softmax", g.add("Add", logits, self.mask), axis=-1)
        out = g.add("MatMul", weights, v)
        out = g.reshape(out, (0, 0, self.groups, -1, width), (0, 0, -1, width))
        out = g.add("Transpose", out, perm=[0, 3, 1, 2, 4])
        out = g.reshape(out, (0, 0, -1), (0, 0, heads, self.groups, width))
        return self._linear("attn_output", out, block)

    def _head_norm(self, role: str, y: str, block: int) -> str:
        """RMSNorm of every head separately, if the model has it (Qwen3)."""
        spec, g = self.weights.find(role, block), self.graph
        if spec is None:
            return y
        heads = g.reshape(y, (0, 0, -1, self.d.head_dim), (0, 0, -1))
        heads = self._rms_norm(heads, spec, 1.0, self.d.rms_norm_eps)
        return g.reshape(heads, (0, 0, -1), (0, 0, -1, self.d.head_dim))

    def _turn(self, x: str, heads: int) -> str:
        """Queries or keys ``[batch, time, heads · head_dim]`` with rotary positions."""
        if self.learned:
            return x
        g, d = self.graph, self.d
        width = int(d.head_dim * d.partial_rotary_factor)
        inputs = (x, g.whole(0), self._table(0), self._table(1))
        if width == d.head_dim:
            return g.add("RotaryEmbedding", *inputs)
        return g.add("RotaryEmbedding", *inputs, num_heads=heads, rotary_embedding_dim=width)

    def _table(self, index: int) -> str:
        """cos or sin of every position, ``[context, width / 2]``."""

        def values() -> Array:
            table = Rotary(self.d)(0, self.context)[index]
            found: Array = table[:, : table.shape[1] // 2].contiguous().numpy()
            return found

        half = int(self.d.head_dim * self.d.partial_rotary_factor) // 2
        name = ("rotary.cos", "rotary.sin")[index]
        return self.graph.store(name, np.float32, (self.context, half), values)


def _silu(g: TrainingGraph, x: str) -> str:
    return g.add("Mul", x, g.add("Sigmoid", x))


def _gelu_new(g: TrainingGraph, x: str) -> str:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    cube = g.add("Mul", g.add("Mul", x, x), x)
    inner = g.add("Add", x, g.add("Mul", cube, g.number(0.044715)))
    bent = g.add("Tanh", g.add("Mul", inner, g.number(math.sqrt(2 / math.pi))))
    return g.add("Mul", g.add("Mul", x, g.number(0.5)), g.add("Add", bent, g.number(1)))


ACTIVATIONS: Mapping[str, Callable[[TrainingGraph, str], str]] = {
    "silu": _silu,
    "relu": lambda g, x: g.add("Relu", x),
    "gelu_new": _gelu_new,
}
