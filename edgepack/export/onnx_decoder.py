"""A decoder as an ONNX graph: the forward pass of `model.decoder`, in ONNX Runtime's operators.

Inputs and outputs have the names that optimum, onnxruntime-genai and Transformers.js expect. Keys
and values are interleaved, and dimensions are numbers where those programs need numbers. Rows may
be padded on the left: a bias hides the tokens that `attention_mask` hides. Rotary positions count
the padding too, because only their differences matter. (GroupQueryAttention has an input for
positions, but uses it only for one token after others.) Learned positions, and rotary positions of
a part of a head, are an input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.export import onnx_metadata
from edgepack.export._onnx_graph import Graph, kind
from edgepack.export._onnx_store import Load, Store
from edgepack.export._onnx_weights import Weights
from edgepack.export.profiles import GraphOptions
from edgepack.model.rotary import Rotary

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
        self.tables: set[str] = set()
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
        self.total = g.add("Cast", total, to=kind(np.int32))
        last = g.add("Sub", self.total, g.constant(1, np.int32))
        batch = g.add("Shape", "input_ids", start=0, end=1)
        self.lengths = g.add("Expand", last, batch)
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
        self.bias = g.add("Expand", bias, everyone)

    def _embed(self) -> str:
        g, spec = self.graph, self.weights.spec("token_embd")
        g.scope = "embed"
        x = self.weights.gather(spec, "input_ids")
        if not self.learned:
            return x
        first = g.constant(self.family.unused_positions, np.int64)
        places = g.add("Add", "position_ids", first)
        return g.add("Add", x, self.weights.gather(self.weights.spec("position_embd"), places))

    def _head(self, x: str) -> None:
        g = self.graph
        if self.options.profile.few_logits:
            x = self._last(x)
        name = self.weights.spec("token_embd" if self.d.tie_word_embeddings else "output").name
        bias = self.family.outside.get("output.bias", "")
        biased = bias in self.weights.checkpoint.specs
        last = "" if self.options.half else "logits"
        logits = self.weights.apply(x, [name], out="" if biased else last)
        if biased:
            logits = g.add("Add", logits, self.weights.store.vector(bias), out=last)
        if self.options.half:
            g.add("Cast", logits, out="logits", to=kind(np.float32))

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
        out = self._attention(h, block)
        if self.weights.find("ffn_norm", block) is None:
            out = self.graph.add("Add", out, self._mlp(h, block))
            self._write(out, "attn_shortcut", block)
            return
        self._write(out, "attn_shortcut", block)
        self._write(self._mlp(self._norm("ffn_norm", block), block), "ffn_shortcut", block)

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
        g, spec = self.graph, self.weights.spec(role, block)
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
        op, attributes = ACTIVATIONS[self.family.activation]
        if self.weights.find("ffn_gate", block) is None:
            inner = self.graph.add(op, self.weights.linear(h, ["ffn_up"], block), **attributes)
            return self.weights.linear(inner, ["ffn_down"], block)
        gate = self.graph.add(op, self.weights.linear(h, ["ffn_gate"], block), **attributes)
        inner = self.graph.add("Mul", gate, self.weights.linear(h, ["ffn_up"], block))
        return self.weights.linear(inner, ["ffn_down"], block)

    # ------------------------------------------------------------------ attention

    def _attention(self, h: str, block: int) -> str:
        g, d = self.graph, self.d
        shape = ("batch_size", d.num_key_value_heads, "past_sequence_length", d.head_dim)
        grown = (*shape[:2], "total_sequence_length", d.head_dim)
        past, present = [], []
        for what in ("key", "value"):
            past.append(g.input(f"past_key_values.{block}.{what}", self.options.dtype, shape))
            present.append(f"present.{block}.{what}")
            g.output(present[-1], self.options.dtype, grown)
        q, k, v = self._projections(h, block)
        if not self.turns and not self.learned:
            q, k = self._turned(q, d.num_attention_heads), self._turned(k, d.num_key_value_heads)
        caches = [self._rotary("cos"), self._rotary("sin")] if self.turns else ["", ""]
        inputs = (q, k, v, *past, self.lengths, self.total, *caches)
        padded = ("", self.bias) if self.options.profile.left_padding else ()
        out, _, _ = g.add_many(
            "GroupQueryAttention",
            *(*inputs, *padded),
            outs=("*", *present),
            num_heads=d.num_attention_heads,
            kv_num_heads=d.num_key_value_heads,
            scale=d.head_dim**-0.5,
            do_rotary=int(self.turns),
            local_window_size=d.sliding_window or -1,
        )
        return self.weights.linear(out, ["attn_output"], block)

    def _projections(self, h: str, block: int) -> tuple[str, str, str]:
        """Queries, keys and values; if one product gives them all, it is the first."""
        roles = ["attn_q", "attn_k", "attn_v"]
        known = [self.weights.parts[self.weights.spec(role, block).name] for role in roles]
        normed = [self.weights.find(f"{role}_norm", block) for role in roles]
        biased = {self.weights.find(f"{role}.bias", block) is None for role in roles}
        separate = known[0].rank or self.weights.options.adapters
        alike = len(set(known)) == 1 and not separate and len(biased) == 1
        if alike and not any(normed) and (self.turns or self.learned):
            return self.weights.linear(h, roles, block), "", ""
        heads = (self.weights.linear(h, [role], block) for role in roles)
        q, k, v = (
            y if spec is None else self._head_norm(y, spec)
            for y, spec in zip(heads, normed, strict=True)
        )
        return q, k, v

    def _head_norm(self, y: str, spec: WeightSpec) -> str:
        """RMSNorm of every head separately (Qwen3)."""
        g, d = self.graph, self.d
        heads = g.add("Reshape", y, g.constant([0, 0, -1, d.head_dim], np.int64))
        gain, eps = self.weights.store.vector(spec.name), d.rms_norm_eps
        heads = g.add("SimplifiedLayerNormalization", heads, gain, axis=-1, epsilon=eps)
        return g.add("Reshape", heads, g.constant([0, 0, -1], np.int64))

    def _turned(self, x: str, heads: int) -> str:
        """Rotary positions applied to a part of every head (Phi)."""
        width = int(self.d.head_dim * self.d.partial_rotary_factor)
        caches = (self._rotary("cos"), self._rotary("sin"))
        return self.graph.add(
            "RotaryEmbedding",
            *(x, "position_ids", *caches),
            num_heads=heads,
            rotary_embedding_dim=width,
        )

    def _rotary(self, which: str) -> str:
        """cos or sin of every position ``[context, width / 2]``, stored as coarse and fine steps
        that a session combines when it loads. A whole table would be 2 % of a small model, and not
        every runtime has cosines in float64."""
        g, name = self.graph, f"rotary.{which}"
        if name in self.tables:
            return name
        self.tables.add(name)
        fine = 1 << (self.options.context - 1).bit_length() // 2
        frequency = Rotary(self.d).frequency.numpy()

        def steps(part: str, turn: Any, positions: Any) -> str:
            """cos or sin of some positions, float32 but computed in float64."""
            values = turn(positions * frequency).astype(np.float32)
            return g.store(
                f"rotary.{part}.{turn.__name__}", np.float32, values.shape, lambda: values
            )

        coarse = np.arange(0, self.options.context, fine)[:, None, None]
        near = np.arange(fine)[None, :, None]
        first, second = (np.cos, np.sin) if which == "cos" else (np.sin, np.cos)
        left = g.add("Mul", steps("coarse", first, coarse), steps("fine", np.cos, near))
        right = g.add("Mul", steps("coarse", second, coarse), steps("fine", np.sin, near))
        turned = g.add("Sub" if which == "cos" else "Add", left, right)
        rows = g.add("Reshape", turned, g.constant([-1, len(frequency)], np.int64))
        ends = (g.constant([end], np.int64) for end in (0, self.options.context))
        g.add("Cast", g.add("Slice", rows, *ends), out=name, to=kind(self.options.dtype))
        return name
