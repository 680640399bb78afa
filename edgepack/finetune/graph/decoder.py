"""The forward pass of `model.block` as ONNX nodes that `autodiff` has rules for.

Queries of one group share keys, so they are one long list of queries ``[batch, kv_heads, group ·
time, head_dim]``: then no product broadcasts, and no gradient has to be summed over a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edgepack.architectures.base import BEHIND
from edgepack.checkpoint.base import Dimensions
from edgepack.core.weights import WeightSpec
from edgepack.export._onnx_attention import ROLES
from edgepack.export._onnx_store import Store
from edgepack.export._onnx_weights import Weights
from edgepack.export.profiles import GraphOptions
from edgepack.finetune.graph.base import Base
from edgepack.finetune.graph.builder import TrainingGraph
from edgepack.finetune.graph.matrices import Matrix
from edgepack.finetune.graph.options import Options, Parameter
from edgepack.finetune.graph.positions import Positions


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
        self.positions = Positions(graph, self.family, self.context, self.groups)

    # ------------------------------------------------------------------ the model

    def embed(self) -> str:
        """The first block's input."""
        g = self.graph
        g.scope = "embed"
        table = self.matrix(self.weights.spec("token_embd")).Q
        x = g.add("Reshape", table.gather("input_ids"), g.whole(0, 0, table.shape[1]))
        x = self._scaled(x, self.d.embedding_scale)
        if not self.positions.learned:
            return x
        places = self.positions.places(self.family.unused_positions)
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
        a = self._written(self._attention(h, block), "attn_output", block)
        stream = self._shortcut("attn_shortcut", x, block)
        if self.family.parallel:
            m = self._written(self._mlp(h, block), "ffn_down", block)
            return g.add("Add", g.add("Add", stream, a), m)
        x = g.add("Add", stream, a)
        m = self._mlp(self.norm("ffn_norm", x, block), block)
        stream = self._shortcut("ffn_shortcut", x, block)
        return g.add("Add", stream, self._written(m, "ffn_down", block))

    def _written(self, out: str, role: str, block: int) -> str:
        """What a weight's output adds to the residual stream."""
        return self._scaled(self.norm(BEHIND[role], out, block), self.d.residual_scale)

    def _scaled(self, x: str, factor: float) -> str:
        return x if factor == 1.0 else self.graph.add("Mul", x, self.graph.number(factor))

    def norm(self, role: str, x: str, block: int | None) -> str:
        """RMSNorm, or LayerNorm where there is a bias; x itself if the model has no such norm."""
        spec, bias = self.weights.find(role, block), self.weights.find(f"{role}.bias", block)
        if spec is None:
            return x
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
        act, width = ACTIVATIONS[self.family.activation], self.d.intermediate_size
        up = self._linear("ffn_up", h, block)
        if self.weights.find("ffn_gate", block) is not None:
            gate = self._linear("ffn_gate", h, block)
        elif self.weights.spec("ffn_up", block).shape[0] == width:
            return self._linear("ffn_down", act(self.graph, up), block)
        else:
            gate, up = self.graph.columns(up, (width, width))
        inner = self.graph.add("Mul", act(self.graph, gate), up)
        return self._linear("ffn_down", inner, block)

    # ------------------------------------------------------------------ attention

    def _attention(self, h: str, block: int) -> str:
        g, d = self.graph, self.d.block(block)
        heads, width = d.num_key_value_heads, d.head_dim
        q, k, v = self._projections(h, block, d)
        q = self._placed("attn_q", q, block, d)
        k = self._placed("attn_k", k, block, d)
        q = self.positions.tempered(q, d)
        q = g.reshape(q, (0, 0, heads, self.groups, width), (0, 0, -1))
        q = g.add("Transpose", q, perm=[0, 2, 3, 1, 4])
        q = g.reshape(q, (0, 0, -1, width), (0, 0, self.groups, -1, width))
        k, v = (g.reshape(x, (0, 0, heads, width), (0, 0, -1)) for x in (k, v))
        k, v = (g.add("Transpose", x, perm=[0, 2, 1, 3]) for x in (k, v))
        logits = g.add("FusedMatMul", q, k, transB=1, alpha=d.score_scale)
        if d.attention_softcap is not None:
            logits = g.capped(logits, d.attention_softcap)
        logits = g.add("Add", logits, self.positions.mask(d.sliding_window))
        out = g.add("MatMul", g.add("Softmax", logits, axis=-1), v)
        out = g.reshape(out, (0, 0, self.groups, -1, width), (0, 0, -1, width))
        out = g.add("Transpose", out, perm=[0, 3, 1, 2, 4])
        out = g.reshape(out, (0, 0, -1), (0, 0, heads, self.groups, width))
        return self._linear("attn_output", out, block)

    def _projections(self, h: str, block: int, d: Dimensions) -> tuple[str, str, str]:
        """Queries, keys and values."""
        if self.weights.find("attn_qkv", block) is None:
            q, k, v = (self._linear(role, h, block) for role in ROLES)
            return q, k, v
        heads = (d.num_attention_heads, d.num_key_value_heads, d.num_key_value_heads)
        widths = [count * d.head_dim for count in heads]
        q, k, v = self.graph.columns(self._linear("attn_qkv", h, block), widths)
        return q, k, v

    def _placed(self, role: str, y: str, block: int, d: Dimensions) -> str:
        """Queries or keys with their norm, if any, and rotary positions."""
        spec, last = self.weights.find(f"{role}_norm", block), self.family.head_norms_last
        if spec is not None and not last:
            y = self._head_norm(y, spec, d)
        if self.positions.turns(d):
            heads = d.num_attention_heads if role == "attn_q" else d.num_key_value_heads
            y = self.positions.turned(y, d, heads)
        return self._head_norm(y, spec, d) if spec is not None and last else y

    def _head_norm(self, y: str, spec: WeightSpec, d: Dimensions) -> str:
        """RMSNorm of every head, or of all heads together if the gain is that wide."""
        g = self.graph
        if spec.shape[0] != d.head_dim:
            return self._rms_norm(y, spec, 1.0, d.rms_norm_eps)
        heads = g.reshape(y, (0, 0, -1, d.head_dim), (0, 0, -1))
        heads = self._rms_norm(heads, spec, 1.0, d.rms_norm_eps)
        return g.reshape(heads, (0, 0, -1), (0, 0, -1, d.head_dim))


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
