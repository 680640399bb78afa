"""The attention of a block as ONNX nodes: projections, norms of heads, positions, and what they
attend to.

GroupQueryAttention rotates queries and keys itself where it can: whole heads, with their norms in
front. Otherwise they are rotated before, by the input ``position_ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgepack.checkpoint.base import Dimensions
from edgepack.core.weights import WeightSpec
from edgepack.export._onnx_graph import kind
from edgepack.export._onnx_rotary import Tables
from edgepack.export._onnx_weights import Weights

ROLES = ("attn_q", "attn_k", "attn_v")


class Attention:
    """Adds the attention of blocks to a graph. `lengths` and `total` are GroupQueryAttention's
    inputs of that name; `bias` hides padding on the left, "" where there is none."""

    lengths: str
    total: str
    bias: str = ""

    def __init__(self, weights: Weights) -> None:
        self.graph, self.weights, self.options = weights.graph, weights, weights.options
        self.family, self.d = weights.family, weights.checkpoint.dimensions
        self.learned = "position_embd" in self.family.outside
        self.positions = Tables(self.graph, self.options, neighbours=self.family.neighbours)
        self._temperatures: dict[tuple[float, int], str] = {}

    # ------------------------------------------------------------------ where positions act

    @property
    def needs_positions(self) -> bool:
        """Whether the graph must be told the position of every token."""
        blocks = map(self.d.block, range(self.d.num_hidden_layers))
        return self.learned or any(self._turns_before(d) or self._tempered(d) for d in blocks)

    def _turns(self, d: Dimensions) -> bool:
        return not self.learned and d.partial_rotary_factor > 0

    def _turns_before(self, d: Dimensions) -> bool:
        """Whether queries and keys are rotated before GroupQueryAttention sees them."""
        whole = d.partial_rotary_factor == 1 and not self.family.head_norms_last
        return self._turns(d) and not whole

    def _tempered(self, d: Dimensions) -> bool:
        """Whether a position that the graph reaches multiplies its queries by more than 1."""
        if not self._turns(d):
            return False
        turns = self.positions.rotary(d)
        return turns.beta > 0 and self.options.context > turns.original

    # ------------------------------------------------------------------ a block

    def add(self, h: str, block: int) -> str:
        """Normed states ``[batch, time, hidden]`` → the output of attention, of the same shape."""
        g, d = self.graph, self.d.block(block)
        shape = ("batch_size", d.num_key_value_heads, "past_sequence_length", d.head_dim)
        grown = (*shape[:2], "total_sequence_length", d.head_dim)
        past, present = [], []
        for what in ("key", "value"):
            past.append(g.input(f"past_key_values.{block}.{what}", self.options.dtype, shape))
            present.append(f"present.{block}.{what}")
            g.output(present[-1], self.options.dtype, grown)
        inside = self._turns(d) and not self._turns_before(d)
        caches = self.positions.tables(d) if inside else ("", "")
        q, k, v = self._projections(h, block, d)
        inputs = (q, k, v, *past, self.lengths, self.total, *caches)
        padded = ("", self.bias) if self.bias else ()
        out, _, _ = g.add_many(
            "GroupQueryAttention",
            *(*inputs, *padded),
            outs=("*", *present),
            num_heads=d.num_attention_heads,
            kv_num_heads=d.num_key_value_heads,
            scale=d.score_scale,
            do_rotary=int(inside),
            local_window_size=self._window(d),
            **self._further(d, inside=inside),
        )
        return self.weights.linear(out, ["attn_output"], block)

    def _window(self, d: Dimensions) -> int:
        """The window, −1 for one that hides no position of the graph."""
        window = d.sliding_window
        return -1 if window is None or window >= self.options.context else window

    def _further(self, d: Dimensions, *, inside: bool) -> dict[str, Any]:
        """Attributes that few models need, and old runtimes do not know."""
        found: dict[str, Any] = {}
        if inside and self.family.neighbours:
            found["rotary_interleaved"] = 1
        if d.attention_softcap is not None:
            found["softcap"] = d.attention_softcap
        return found

    # ------------------------------------------------------------------ queries, keys, values

    def _projections(self, h: str, block: int, d: Dimensions) -> tuple[str, str, str]:
        """Queries, keys and values; if one product gives them all, it is the first."""
        normed = any(self.weights.find(f"{role}_norm", block) for role in ROLES)
        apart = normed or self._turns_before(d) or self._tempered(d)
        parts: Sequence[str]
        if self.weights.find("attn_qkv", block) is not None:
            product = self.weights.linear(h, ["attn_qkv"], block)
            if not apart:
                return product, "", ""
            sizes = self.graph.constant([heads * d.head_dim for heads in _heads(d)], np.int64)
            parts = self.graph.add_many("Split", product, sizes, outs=["*"] * 3, axis=-1)
        elif not apart and self._alike(block):
            return self.weights.linear(h, ROLES, block), "", ""
        else:
            parts = [self.weights.linear(h, [role], block) for role in ROLES]
        q, k, v = parts
        q, k = self._placed("attn_q", q, block, d), self._placed("attn_k", k, block, d)
        if self._tempered(d):
            q = self.graph.add("Mul", q, self._temperature(d))
        return q, k, v

    def _alike(self, block: int) -> bool:
        """Whether one product can give queries, keys and values."""
        specs = [self.weights.spec(role, block) for role in ROLES]
        known = {self.weights.parts[spec.name] for spec in specs}
        biased = {self.weights.find(f"{role}.bias", block) is None for role in ROLES}
        separate = any(fmt.rank for fmt in known) or self.options.adapters
        return len(known) == 1 and len(biased) == 1 and not separate

    def _placed(self, role: str, y: str, block: int, d: Dimensions) -> str:
        """Queries or keys behind their norm, and rotated if GroupQueryAttention does not do it."""
        spec, last = self.weights.find(f"{role}_norm", block), self.family.head_norms_last
        if spec is not None and not last:
            y = self._normed(y, spec, d)
        if self._turns_before(d):
            y = self._turned(y, _heads(d)[ROLES.index(role)], d)
        return self._normed(y, spec, d) if spec is not None and last else y

    def _normed(self, y: str, spec: WeightSpec, d: Dimensions) -> str:
        """RMSNorm of every head, or of all heads together if the gain is that wide."""
        g, op = self.graph, "SimplifiedLayerNormalization"
        gain, eps = self.weights.store.vector(spec.name), d.rms_norm_eps
        if spec.shape[0] != d.head_dim:
            return g.add(op, y, gain, axis=-1, epsilon=eps)
        heads = g.add("Reshape", y, g.constant([0, 0, -1, d.head_dim], np.int64))
        heads = g.add(op, heads, gain, axis=-1, epsilon=eps)
        return g.add("Reshape", heads, g.constant([0, 0, -1], np.int64))

    def _turned(self, x: str, heads: int, d: Dimensions) -> str:
        """Rotary positions applied to heads, or a part of every head."""
        return self.graph.add(
            "RotaryEmbedding",
            *(x, "position_ids", *self.positions.tables(d)),
            num_heads=heads,
            rotary_embedding_dim=d.rotary_dim,
            interleaved=int(self.family.neighbours),
        )

    def _temperature(self, d: Dimensions) -> str:
        """`Rotary.temperature` of every token, ``[batch, time, 1]``; shared by all blocks."""
        g, turns = self.graph, self.positions.rotary(d)
        key = turns.beta, turns.original
        if key not in self._temperatures:
            spans = g.add("Div", "position_ids", g.constant(turns.original, np.int64))
            one = g.constant(1, np.float32)
            grown = g.add("Log", g.add("Add", g.add("Cast", spans, to=kind(np.float32)), one))
            factor = g.add("Add", g.add("Mul", grown, g.constant(turns.beta, np.float32)), one)
            factor = g.add("Cast", factor, to=kind(self.options.dtype))
            self._temperatures[key] = g.add("Unsqueeze", factor, g.constant([2], np.int64))
        return self._temperatures[key]


def _heads(d: Dimensions) -> tuple[int, int, int]:
    """Numbers of heads of queries, keys and values."""
    return d.num_attention_heads, d.num_key_value_heads, d.num_key_value_heads
