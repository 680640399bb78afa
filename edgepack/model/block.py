"""One transformer block of any family: norms, rotary embedding, attention and MLP.

Biases, norms of q and k, the head size and a sliding window follow from its weights and dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.checkpoint.base import Dimensions

Linear = Callable[[str, Tensor], Tensor]
"""(role, x ``[batch, time, in]``) → y ``[batch, time, out]``: the function by which a block applies
its weights. Calibration passes one that records every x and y."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, width: int | None = None) -> Tensor:
    """x / √(Σ x² / width + ε) · weight, over the last dimension. `width` is that of x, or of the
    stream that x is a slice of."""
    kept = x.shape[-1]
    if width is not None and width != kept:
        weight, eps = weight * math.sqrt(width / kept), eps * width / kept
    return functional.rms_norm(x, (kept,), weight, eps)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, width: int | None) -> Tensor:
    """`rms_norm`, or LayerNorm where there is a bias."""
    if bias is None:
        return rms_norm(x, weight, eps, width)
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
}


class Rotary:
    """Rotary position embedding (RoFormer) in Hugging Face's half-split order."""

    def __init__(self, dimensions: Dimensions) -> None:
        width = int(dimensions.head_dim * dimensions.partial_rotary_factor)
        exponent = torch.arange(0, width, 2).double() / width
        frequency = dimensions.rope_theta**-exponent
        self.frequency = _scale_frequency(frequency, dimensions.rope_scaling)

    def __call__(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin for the positions start … start+length−1, each ``[length, head_dim]`` (or the
        part of head_dim that is rotated)."""
        angle = torch.arange(start, start + length).double()[:, None] * self.frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().float(), angle.sin().float()


def _scale_frequency(frequency: Tensor, scaling: Mapping[str, Any] | None) -> Tensor:
    """Llama-3's and the linear stretching of rotary frequencies (as in transformers)."""
    kind = (scaling or {}).get("rope_type", "default")
    if scaling is None or kind == "default":
        return frequency
    if kind == "linear":
        return frequency / float(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    scaled: Tensor = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    return scaled


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, kept], dim=-1) if kept.shape[-1] else turned


@dataclass
class KeyValueCache:
    """Keys and values of one block so far, ``[batch, kv_heads, capacity, head_dim]``."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v ``[batch, kv_heads, time, head_dim]``; returns all keys and values."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class Block:
    """One transformer block; `weights` maps roles to float32 tensors. A sliced block also has the
    matrices ``attn_shortcut`` and ``ffn_shortcut``, which move its residual stream from one basis
    to the next (SliceGPT, figure 3)."""

    dimensions: Dimensions
    weights: Mapping[str, Tensor]
    rotary: Rotary | None
    activation: str = "silu"

    @property
    def linears(self) -> tuple[str, ...]:
        """The roles that the block calls `Linear` with, in the order of use."""
        return tuple(role for role in LINEAR_ROLES if role in self.weights)

    def to(self, device: torch.device) -> Block:
        """The same block with its weights on a device."""
        return replace(self, weights={role: w.to(device) for role, w in self.weights.items()})

    def linear(self, role: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x Wᵀ + b in float32; with a `dtype`, the product is computed in that."""
        W, bias = self.weights[role], self.weights.get(f"{role}.bias")
        if dtype is None:
            return functional.linear(x, W, bias)
        y = functional.linear(x.to(dtype), W.to(dtype)).float()
        return y if bias is None else y + bias

    def __call__(
        self, x: Tensor, linear: Linear | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x ``[batch, time, hidden]`` → the next block's input of the same shape."""
        if "ffn_norm" not in self.weights:
            return self.attend(x, linear, cache) + self._mlp(self._normed("attn_norm", x), linear)
        return self.feed(self.attend(x, linear, cache), linear)

    def attend(
        self, x: Tensor, linear: Linear | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x + attention, the first half of the block."""
        out = self._attention(self._normed("attn_norm", x), linear or self.linear, cache)
        return self._shortcut("attn_shortcut", x) + out

    def feed(self, x: Tensor, linear: Linear | None = None) -> Tensor:
        """x + feed-forward, the second half."""
        return self._shortcut("ffn_shortcut", x) + self._mlp(self._normed("ffn_norm", x), linear)

    def _mlp(self, h: Tensor, linear: Linear | None) -> Tensor:
        linear, act = linear or self.linear, ACTIVATIONS[self.activation]
        if "ffn_gate" in self.weights:
            return linear("ffn_down", act(linear("ffn_gate", h)) * linear("ffn_up", h))
        return linear("ffn_down", act(linear("ffn_up", h)))

    def _normed(self, role: str, x: Tensor) -> Tensor:
        d, bias = self.dimensions, self.weights.get(f"{role}.bias")
        return norm(x, self.weights[role], bias, d.rms_norm_eps, d.hidden_size)

    def _shortcut(self, role: str, x: Tensor) -> Tensor:
        return x @ self.weights[role] if role in self.weights else x

    def _heads(self, role: str, x: Tensor, linear: Linear) -> Tensor:
        """A projection as heads ``[batch, heads, time, head_dim]``, after their norm if any."""
        y = torch.unflatten(linear(role, x), -1, (-1, self.dimensions.head_dim)).transpose(1, 2)
        norm = self.weights.get(f"{role}_norm")
        return y if norm is None else rms_norm(y, norm, self.dimensions.rms_norm_eps)

    def _attention(self, x: Tensor, linear: Linear, cache: KeyValueCache | None) -> Tensor:
        start = cache.length if cache else 0
        q, k = (self._heads(role, x, linear) for role in ("attn_q", "attn_k"))
        if self.rotary is not None:
            cos, sin = (t.to(x.device) for t in self.rotary(start, x.shape[1]))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        v = self._heads("attn_v", x, linear)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = attention(q, k, v, self.dimensions.sliding_window)
        return linear("attn_output", out.transpose(1, 2).flatten(2))


def attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal grouped-query attention; the queries are the last positions of the keys.

    q ``[batch, heads, queries, head_dim]``, k and v ``[batch, kv_heads, keys, head_dim]``. With a
    `window`, a query attends to that many positions, its own included.
    """
    queries, keys = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    if queries == 1:  # a group's queries share keys: no copies of k and v
        k, v = (t[:, :, -window:] if window else t for t in (k, v))
        q = q.view(q.shape[0], k.shape[1], groups, -1)
        return functional.scaled_dot_product_attention(q, k, v).flatten(1, 2).unsqueeze(2)
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if queries == keys and (window is None or keys <= window):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    positions = torch.arange(keys, device=q.device)
    age = positions[keys - queries :, None] - positions
    mask = (age >= 0) & (age < (window or keys))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
