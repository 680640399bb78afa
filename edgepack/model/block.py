"""One transformer block of any family: norms, a mixer (attention with its rotary embedding, or
another), and MLP.

Biases, norms of q and k, the head size and a sliding window follow from its weights and dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.architectures.base import BEHIND, LINEAR_ROLES, Architecture
from edgepack.checkpoint.base import Dimensions
from edgepack.core.accelerator import CPU
from edgepack.core.parts import stem
from edgepack.model.carried import Carried, Shared
from edgepack.model.experts import mixture, route
from edgepack.model.gated_delta import DeltaCache, gated_delta
from edgepack.model.rotary import Rotary
from edgepack.model.short_conv import ConvolutionCache, short_conv

Linear = Callable[[str, Tensor], Tensor]
"""(role, x ``[batch, time, in]``) → y ``[batch, time, out]``: the function by which a block applies
its weights. Calibration passes one that records every x and y. An expert's role has its index
(`core.parts.part_name`), and x are the tokens that it gets, ``[tokens, in]``."""


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


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap·tanh(x / cap)."""
    return cap * torch.tanh(x / cap)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
}


@dataclass
class KeyValueCache:
    """Keys and values of one block so far, ``[batch, kv_heads, capacity, head_dim]``."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, batch: int, capacity: int, d: Dimensions, device: torch.device) -> KeyValueCache:
        """Room for `capacity` positions."""
        shape = (batch, d.num_key_value_heads, capacity, d.head_dim)
        return cls(torch.empty(shape, device=device), torch.empty(shape, device=device))

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v ``[batch, kv_heads, time, head_dim]``; returns all keys and values."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


Cache = KeyValueCache | ConvolutionCache | DeltaCache
"""What a block keeps of earlier positions."""


def empty_cache(
    roles: Collection[str], batch: int, capacity: int, d: Dimensions, device: torch.device = CPU
) -> Cache:
    """The cache of a block with some roles and dimensions, for `capacity` positions."""
    if "conv" in roles:
        return ConvolutionCache.empty(batch, d.hidden_size, d, device)
    if "ssm_out" in roles:
        return DeltaCache.empty(batch, d, device)
    return KeyValueCache.empty(batch, capacity, d, device)


@dataclass(frozen=True)
class Block:
    """One transformer block; `weights` maps roles to float32 tensors. A sliced block also has the
    matrices ``attn_shortcut`` and ``ffn_shortcut``, which move its residual stream from one basis
    to the next (SliceGPT, figure 3). `carried` says what the stream has beside the hidden state."""

    dimensions: Dimensions
    weights: Mapping[str, Tensor]
    rotary: Rotary | None
    family: Architecture
    carried: Carried | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        """The roles that the block calls `Linear` with, in the order of use."""
        names = [name for name in self.weights if not name.endswith(".bias")]
        found = (name for name in names if stem(name) in LINEAR_ROLES)
        return tuple(sorted(found, key=lambda name: LINEAR_ROLES.index(stem(name))))

    @property
    def device(self) -> torch.device:
        """Where its weights are, and its input has to be."""
        return next(iter(self.weights.values())).device

    def to(self, device: torch.device) -> Block:
        """The same block with its weights on a device."""
        return replace(self, weights={role: w.to(device) for role, w in self.weights.items()})

    def multiplying(self, dtype: torch.dtype) -> Block:
        """The same block with the matrices of its products in `dtype`, in which they are then
        computed."""
        linears = set(self.linears)
        weights = {k: w.to(dtype) if k in linears else w for k, w in self.weights.items()}
        return replace(self, weights=weights)

    def linear(self, role: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x Wᵀ + b as float32; the product is computed in `dtype`, or else in W's."""
        W, bias = self.weights[role], self.weights.get(f"{role}.bias")
        dtype = W.dtype if dtype is None else dtype
        if dtype == x.dtype:
            return functional.linear(x, W, bias)
        y = functional.linear(x.to(dtype), W.to(dtype)).float()
        return y if bias is None else y + bias

    def __call__(
        self, x: Tensor, linear: Linear | None = None, cache: Cache | None = None
    ) -> Tensor:
        """x ``[batch, time, hidden]`` → the next block's input of the same shape; both have more
        columns where something else is carried."""
        if self.carried is not None:
            return self._carrying(self.carried, x, linear, cache)
        if self.family.parallel:
            h = self._normed("attn_norm", x)
            return self.attend(x, linear, cache) + self._written(self._mlp(h, linear), "ffn_down")
        return self.feed(self.attend(x, linear, cache), linear)

    def _carrying(
        self, carried: Carried, x: Tensor, linear: Linear | None, cache: Cache | None
    ) -> Tensor:
        """The block where the stream carries more: inputs of blocks, shared keys and values."""
        shared = carried.shared(x, self.dimensions.num_key_value_heads)
        h = self.attend(x[..., : carried.hidden], linear, cache, shared)
        h = self.feed(h, linear)
        if carried.inputs:
            h = self._fed_by_layer(h, carried.own_input(x), linear or self.linear)
        if "layer_output_scale" in self.weights:
            h = h * self.weights["layer_output_scale"]
        return carried.passed_on(x, h, shared)

    def _fed_by_layer(self, h: Tensor, own: Tensor, linear: Linear) -> Tensor:
        """h + norm(W_proj (act(W_gate h) ∘ the block's own input)), as in Gemma 3n and 4."""
        gate = ACTIVATIONS[self.family.activation](linear("inp_gate", h))
        return h + self._normed("post_norm", linear("proj", gate * own))

    def attend(
        self,
        x: Tensor,
        linear: Linear | None = None,
        cache: Cache | None = None,
        shared: Shared | None = None,
    ) -> Tensor:
        """x + what the mixer makes of it, the first half of the block."""
        out = self._mix(self._normed("attn_norm", x), linear or self.linear, cache, shared)
        return self._shortcut("attn_shortcut", x) + self._written(out, "attn_output")

    def _mix(self, x: Tensor, linear: Linear, cache: Cache | None, shared: Shared | None) -> Tensor:
        """The output of the mixer that the block has the roles of."""
        if "conv" in self.weights:
            assert cache is None or isinstance(cache, ConvolutionCache)
            return short_conv(self.weights, x, linear, cache)
        if "ssm_out" in self.weights:
            assert cache is None or isinstance(cache, DeltaCache)
            return gated_delta(self.weights, self.dimensions, x, linear, cache)
        assert cache is None or isinstance(cache, KeyValueCache)
        return self._attention(x, linear, cache, shared or Shared())

    def feed(self, x: Tensor, linear: Linear | None = None) -> Tensor:
        """x + feed-forward, the second half."""
        out = self._mlp(self._normed("ffn_norm", x), linear)
        return self._shortcut("ffn_shortcut", x) + self._written(out, "ffn_down")

    def _mlp(self, h: Tensor, linear: Linear | None) -> Tensor:
        linear, act = linear or self.linear, ACTIVATIONS[self.family.activation]
        if "ffn_gate_inp" in self.weights:
            assert self.family.router is not None
            routing = route(self.weights, self.family.router, self.dimensions, h)
            return mixture(routing, h, linear, act)
        if "ffn_gate" in self.weights:
            return linear("ffn_down", act(linear("ffn_gate", h)) * linear("ffn_up", h))
        up = linear("ffn_up", h)
        if up.shape[-1] == self.dimensions.intermediate_size:
            return linear("ffn_down", act(up))
        gate, up = up.chunk(2, dim=-1)
        return linear("ffn_down", act(gate) * up)

    def _written(self, out: Tensor, role: str) -> Tensor:
        """What a weight's output adds to the residual stream."""
        if (behind := BEHIND[role]) in self.weights:
            out = self._normed(behind, out)
        scale = self.dimensions.residual_scale
        return out if scale == 1.0 else scale * out

    def _normed(self, role: str, x: Tensor) -> Tensor:
        """x behind a norm; x itself if the family has no such norm."""
        if role not in self.weights:
            return x
        d, bias = self.dimensions, self.weights.get(f"{role}.bias")
        return norm(x, self.weights[role], bias, d.rms_norm_eps, d.hidden_size)

    def _shortcut(self, role: str, x: Tensor) -> Tensor:
        return x @ self.weights[role] if role in self.weights else x

    def _projections(self, x: Tensor, linear: Linear) -> tuple[Tensor | None, list[Tensor]]:
        """The queries' gates ``[batch, time, heads · head_dim]`` if they have such; and q, k and v
        as heads ``[batch, heads, time, head_dim]``, after their norms if any: q alone in a block
        that has no keys. Without a matrix of their own, values are the keys."""
        d, roles = self.dimensions, ("attn_q", "attn_k", "attn_v")
        if "attn_qkv" in self.weights:
            heads = (d.num_attention_heads, d.num_key_value_heads, d.num_key_value_heads)
            widths = [count * d.head_dim for count in heads]
            parts = list(torch.split(linear("attn_qkv", x), widths, dim=-1))
        else:
            parts = [linear(role, x) for role in roles if role in self.weights]
            parts += parts[1:] if len(parts) == 2 else []
        gate = None
        if self.family.gated_queries:
            both = torch.unflatten(parts[0], -1, (-1, 2, d.head_dim))
            parts[0], gate = (t.flatten(2) for t in both.unbind(-2))
        return gate, [self._heads(role, y) for role, y in zip(roles, parts, strict=False)]

    def _heads(self, role: str, y: Tensor) -> Tensor:
        """A projection ``[batch, time, width]`` as heads, after their norm: of all heads together
        if its gain is that wide, else of each."""
        d, gain = self.dimensions, self.weights.get(f"{role}_norm")
        together = gain is not None and len(gain) != d.head_dim
        if gain is not None and together:
            y = rms_norm(y, gain, d.rms_norm_eps)
        y = torch.unflatten(y, -1, (-1, d.head_dim)).transpose(1, 2)
        if role == "attn_v" and self.family.value_norm:
            return functional.rms_norm(y, (d.head_dim,), None, d.rms_norm_eps)
        if gain is None or together or self.family.head_norms_last:
            return y
        return rms_norm(y, gain, d.rms_norm_eps)

    def _turned(self, role: str, y: Tensor, start: int) -> Tensor:
        """Heads of q or k turned by their positions, which begin at `start`."""
        if self.rotary is not None:
            cos, sin = (t.to(y.device) for t in self.rotary(start, y.shape[2]))
            y = self.rotary.rotate(y, cos, sin)
        if self.family.head_norms_last:
            y = rms_norm(y, self.weights[f"{role}_norm"], self.dimensions.rms_norm_eps)
        return y

    def _attention(
        self, x: Tensor, linear: Linear, cache: KeyValueCache | None, shared: Shared
    ) -> Tensor:
        start, d = cache.length if cache else 0, self.dimensions
        gate, (q, *own) = self._projections(x, linear)
        q = self._turned("attn_q", q, start)
        if shared.pair is None:
            k, v = own
            shared.pair = self._turned("attn_k", k, start), v
        k, v = shared.pair
        if self.rotary is not None:
            q = self.rotary.tempered(q, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = attention(q, k, v, d.sliding_window, scale=d.score_scale, softcap=d.attention_softcap)
        out = out.transpose(1, 2).flatten(2)
        return linear("attn_output", out if gate is None else out * gate.sigmoid())


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention; the queries are the last positions of the keys.

    q ``[batch, heads, queries, head_dim]``, k and v ``[batch, kv_heads, keys, head_dim]``. With a
    `window`, a query attends to that many positions, its own included. `scale` is the factor of
    q·k (None: 1/√head_dim), `softcap` a cap of what the softmax takes (Gemma 2).
    """
    queries, keys = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    scaled = partial(functional.scaled_dot_product_attention, scale=scale)
    if softcap is not None:
        scaled = partial(_capped, scale=scale, softcap=softcap)
    if queries == 1:  # a group's queries share keys: no copies of k and v
        k, v = (t[:, :, -window:] if window else t for t in (k, v))
        q = q.view(q.shape[0], k.shape[1], groups, -1)
        return scaled(q, k, v).flatten(1, 2).unsqueeze(2)
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if queries == keys and (window is None or keys <= window):
        return scaled(q, k, v, is_causal=True)
    positions = torch.arange(keys, device=q.device)
    age = positions[keys - queries :, None] - positions
    mask = (age >= 0) & (age < (window or keys))
    return scaled(q, k, v, attn_mask=mask)


def _capped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None,
    softcap: float,
    is_causal: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` with a soft cap."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = soft_cap(scores, softcap)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    out: Tensor = scores.softmax(-1) @ v
    return out
