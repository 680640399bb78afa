"""A decoder as an ONNX graph: the forward pass of `model.decoder`, in ONNX Runtime's operators.

Inputs and outputs have the names that optimum, onnxruntime-genai and Transformers.js expect. Keys
and values are interleaved, and dimensions are numbers where those programs need numbers. Rows may
be padded on the left: a bias hides the tokens that `attention_mask` hides. Rotary positions count
the padding too, because only their differences matter. (GroupQueryAttention has an input for
positions, but uses it only for one token after others.) Where the positions themselves matter
(learned ones, temperatures of queries), and where heads are rotated in part, they are an input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from edgepack.architectures.base import BEHIND
from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat
from edgepack.export import onnx_metadata
from edgepack.export._onnx_attention import Attention
from edgepack.export._onnx_graph import Graph, kind
from edgepack.export._onnx_store import Load, Store
from edgepack.export._onnx_weights import Weights
from edgepack.export.profiles import GraphOptions

HIDDEN = {np.float32: -1e9, np.float16: -6e4}
"""Bias added to the attention logits of masked tokens, by the type that a graph computes in."""
ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "silu": ("QuickGelu", {"alpha": 1.0}),
    "relu": ("Relu", {}),
    "gelu_new": ("FastGelu", {}),
}


def decoder_graph(
    checkpoint: Checkpoint,
    parts: Mapping[str, WeightFormat],
    load: Load,
    options: GraphOptions,
    norms: Mapping[str, Tensor] | None = None,
) -> Graph:
    """The graph of a model: input_ids, attention_mask, position_ids (if it needs them), past keys
    and values → logits, present keys and values.

    `parts` gives the format of every matrix, `load` reads one; `norms` replaces some norms and
    biases. Factors in f16 may be replaced when the graph runs.
    """
    graph = Graph(metadata={onnx_metadata.KEY: onnx_metadata.describe(checkpoint, parts)})
    read = lru_cache(maxsize=4)(load)
    weights = Weights(Store(graph, checkpoint, parts, read, norms or {}, options))
    _Builder(weights).build()
    return graph


class _Builder:
    def __init__(self, weights: Weights) -> None:
        self.graph, self.weights, self.options = weights.graph, weights, weights.options
        self.family, self.d = weights.family, weights.checkpoint.dimensions
        self.stream, self.pending = "", ""
        self.attention = Attention(weights)

    # ------------------------------------------------------------------ the model

    def build(self) -> None:
        g, d = self.graph, self.d
        rows: tuple[int | str, ...] = ("batch_size", "sequence_length")
        g.input("input_ids", np.int64, rows)
        g.input("attention_mask", np.int64, ("batch_size", "total_sequence_length"))
        if self.attention.needs_positions:
            g.input("position_ids", np.int64, rows)
        self._masks()
        self.stream = self._embed()
        if self.options.profile.few_logits:
            g.input("num_logits_to_keep", np.int64, None)
        g.output("logits", np.float32, (*rows, d.vocab_size))
        for block in range(d.num_hidden_layers):
            self._block(block)
        g.scope = ""
        self._head(self._norm("output_norm", None))

    def _masks(self) -> None:
        """Lengths and the mask's bias, shared by all blocks."""
        g = self.graph
        g.scope = "mask"
        shape = g.add("Shape", "attention_mask")
        total = g.add("Gather", shape, g.constant(1, np.int64), axis=0)
        self.attention.total = g.add("Cast", total, to=kind(np.int32))
        last = g.add("Sub", self.attention.total, g.constant(1, np.int32))
        batch = g.add("Shape", "input_ids", start=0, end=1)
        self.attention.lengths = g.add("Expand", last, batch)
        if not self.options.profile.left_padding:
            return
        dtype = self.options.dtype
        mask = g.add("Cast", "attention_mask", to=kind(dtype))
        absent = g.add("Sub", g.constant(1, dtype), mask)
        bias = g.add("Mul", absent, g.constant(HIDDEN[dtype], dtype))
        bias = g.add("Unsqueeze", bias, g.constant([1, 2], np.int64))
        one = g.constant([1], np.int64)
        length = g.add("Shape", "input_ids", start=1, end=2)
        everyone = g.add("Concat", one, one, length, one, axis=0)
        self.attention.bias = g.add("Expand", bias, everyone)

    def _embed(self) -> str:
        g, spec = self.graph, self.weights.spec("token_embd")
        g.scope = "embed"
        x = self.weights.gather(spec, "input_ids")
        x = self._scaled(x, self.d.embedding_scale)
        if not self.attention.learned:
            return x
        first = g.constant(self.family.unused_positions, np.int64)
        places = g.add("Add", "position_ids", first)
        return g.add("Add", x, self.weights.gather(self.weights.spec("position_embd"), places))

    def _head(self, x: str) -> None:
        g = self.graph
        if self.options.profile.few_logits:
            x = self._last(x)
        name = self.weights.spec("token_embd" if self.d.tie_word_embeddings else "output").name
        steps = self._finish()
        logits = self.weights.apply(x, [name], out="" if steps else "logits")
        for index, (op, inputs, attributes) in enumerate(steps, 1):
            out = "logits" if index == len(steps) else ""
            logits = g.add(op, logits, *inputs, out=out, **attributes)

    def _finish(self) -> list[tuple[str, tuple[str, ...], dict[str, Any]]]:
        """What makes logits of the output matrix's products: nodes, their further inputs and their
        attributes. Factors and caps are applied in float32."""
        g, d = self.graph, self.d
        bias, cap = self.family.outside.get("output.bias", ""), d.logit_softcap
        steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
        if bias in self.weights.checkpoint.specs:
            steps.append(("Add", (self.weights.store.vector(bias),), {}))
        if self.options.half:
            steps.append(("Cast", (), {"to": kind(np.float32)}))
        if d.logit_scale != 1.0:
            steps.append(("Mul", (g.constant(d.logit_scale, np.float32),), {}))
        if cap is not None:
            limit = (g.constant(cap, np.float32),)
            steps += [("Div", limit, {}), ("Tanh", (), {}), ("Mul", limit, {})]
        return steps

    def _last(self, x: str) -> str:
        """The states of the last num_logits_to_keep tokens; 0 means all."""
        g = self.graph
        kept = g.add("Reshape", "num_logits_to_keep", g.constant([1], np.int64))
        end, axis = (g.constant([number], np.int64) for number in (2**62, 1))
        return g.add("Slice", x, g.add("Neg", kept), end, axis)

    # ------------------------------------------------------------------ a block

    def _block(self, block: int) -> None:
        self.graph.scope = f"layers.{block}"
        h = self._norm("attn_norm", block)
        out = self._written(self.attention.add(h, block), "attn_output", block)
        if self.family.parallel:
            out = self.graph.add("Add", out, self._written(self._mlp(h, block), "ffn_down", block))
            self._write(out, "attn_shortcut", block)
            return
        self._write(out, "attn_shortcut", block)
        out = self._mlp(self._norm("ffn_norm", block), block)
        self._write(self._written(out, "ffn_down", block), "ffn_shortcut", block)

    def _written(self, out: str, role: str, block: int) -> str:
        """What a weight's output adds to the residual stream."""
        spec = self.weights.find(BEHIND[role], block)
        if spec is not None:
            gain, eps = self.weights.store.vector(spec.name), self.d.rms_norm_eps
            out = self.graph.add("SimplifiedLayerNormalization", out, gain, axis=-1, epsilon=eps)
        return self._scaled(out, self.d.residual_scale)

    def _scaled(self, x: str, factor: float) -> str:
        if factor == 1.0:
            return x
        return self.graph.add("Mul", x, self.graph.constant(factor, self.options.dtype))

    def _write(self, out: str, shortcut: str, block: int) -> None:
        """Add `out` to the residual stream (later), which first passes the shortcut if any."""
        self._resolve()
        spec = self.weights.find(shortcut, block)
        if spec is not None:
            self.stream = self.graph.add(
                "MatMul", self.stream, self.weights.store.plain(spec, turned=False)
            )
        self.pending = out

    def _resolve(self) -> None:
        """Add a pending output to the residual stream, if no norm has done it."""
        if self.pending:
            self.stream, self.pending = self.graph.add("Add", self.stream, self.pending), ""

    def _norm(self, role: str, block: int | None) -> str:
        """The residual stream behind a norm; as it is if the model has no such norm."""
        g, spec = self.graph, self.weights.find(role, block)
        if spec is None:
            self._resolve()
            return self.stream
        bias = self.weights.find(f"{role}.bias", block)
        eps, width, of = self.d.rms_norm_eps, spec.shape[0], self.d.hidden_size
        if bias is not None:
            self._resolve()
            vector = self.weights.store.vector
            inputs = (self.stream, vector(spec.name), vector(bias.name))
            return g.add("LayerNormalization", *inputs, axis=-1, epsilon=eps)
        # in a sliced model, the norm divides by the mean over the original's width
        gain = self.weights.store.vector(spec.name, math.sqrt(of / width))
        eps *= of / width
        if not self.pending:
            return g.add("SimplifiedLayerNormalization", self.stream, gain, axis=-1, epsilon=eps)
        inputs = (self.stream, self.pending, gain)
        op, outs = "SkipSimplifiedLayerNormalization", ("*", "", "", "*")
        out, _, _, self.stream = g.add_many(op, *inputs, outs=outs, epsilon=eps)
        self.pending = ""
        return out

    def _mlp(self, h: str, block: int) -> str:
        g, linear = self.graph, self.weights.linear
        op, attributes = ACTIVATIONS[self.family.activation]
        up = linear(h, ["ffn_up"], block)
        if self.weights.find("ffn_gate", block) is not None:
            gate = linear(h, ["ffn_gate"], block)
        elif self.weights.spec("ffn_up", block).shape[0] == self.d.intermediate_size:
            return linear(g.add(op, up, **attributes), ["ffn_down"], block)
        else:  # the gate is the first half
            gate, up = g.add_many("Split", up, outs=("*", "*"), axis=-1, num_outputs=2)
        inner = g.add("Mul", g.add(op, gate, **attributes), up)
        return linear(inner, ["ffn_down"], block)
