"""Qwen3.5's mixer: a gated delta net (Yang, Kautz, Hatamizadeh, arXiv 2412.06464)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.checkpoint.base import Dimensions
from edgepack.core.accelerator import back, wide
from edgepack.model.short_conv import ConvolutionCache, causal_convolution

Linear = Callable[[str, Tensor], Tensor]
CHUNK = 64
"""Positions that are computed together. A loop over single ones would keep a state of each."""
EPSILON = 1e-6
"""Of the length that queries and keys are divided by, as in transformers."""


@dataclass
class DeltaCache:
    """What the convolution has seen, and the state S ``[batch, heads, key_dim, value_dim]``."""

    convolution: ConvolutionCache
    state: Tensor

    @classmethod
    def empty(cls, batch: int, d: Dimensions, device: torch.device) -> DeltaCache:
        """Before the first position."""
        keys = 2 * d.linear_num_key_heads * d.linear_key_head_dim
        values = d.linear_num_value_heads * d.linear_value_head_dim
        shape = (d.linear_num_value_heads, d.linear_key_head_dim, d.linear_value_head_dim)
        past = ConvolutionCache.empty(batch, keys + values, d, device)
        return cls(past, torch.zeros(batch, *shape, device=device))


def kept_floats(d: Dimensions) -> int:
    """Numbers that the backward pass keeps of a position, at most; 0 without a gated delta net."""
    keys = 2 * d.linear_num_key_heads * d.linear_key_head_dim
    values = d.linear_num_value_heads * d.linear_value_head_dim
    return 6 * (keys + 2 * values) + 8 * d.linear_num_value_heads * CHUNK


def gated_delta(
    weights: Mapping[str, Tensor],
    d: Dimensions,
    x: Tensor,
    linear: Linear,
    cache: DeltaCache | None,
) -> Tensor:
    """The mixer's output for x ``[batch, time, hidden]``, of the same shape.

    Value heads are in llama.cpp's order: head h belongs to the keys of head h mod key heads.
    Source: ``Qwen3_5GatedDeltaNet`` in transformers.
    """
    past = None if cache is None else cache.convolution
    mixed = causal_convolution(linear("ssm_qkv", x), weights["ssm_conv1d"], past)
    keys = d.linear_num_key_heads * d.linear_key_head_dim
    q, k, v = torch.split(functional.silu(mixed), [keys, keys, mixed.shape[-1] - 2 * keys], -1)
    q, k = (_unit(_heads(t, d.linear_key_head_dim)) for t in (q, k))
    repeats = d.linear_num_value_heads // d.linear_num_key_heads
    q, k = (t.repeat(1, repeats, 1, 1) for t in (q, k))
    v = _heads(v, d.linear_value_head_dim)
    gate = linear("ssm_gate", x)
    step = functional.softplus(linear("ssm_alpha", x) + weights["ssm_dt.bias"])
    decay = (weights["ssm_a"] * step).transpose(1, 2)
    rate = linear("ssm_beta", x).sigmoid().transpose(1, 2)
    q = q * d.linear_key_head_dim**-0.5
    start = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1]) if cache is None else cache.state
    out, state = delta_rule(q, k, v, decay, rate, start)
    if cache is not None:
        cache.state = state
    out = functional.rms_norm(out, out.shape[-1:], weights["ssm_norm"], d.rms_norm_eps)
    out = out.transpose(1, 2).flatten(2) * functional.silu(gate)
    return linear("ssm_out", out)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = e^{a_t} S_{t−1} + β_t k_t (v_t − e^{a_t} S_{t−1}ᵀ k_t)ᵀ and o_t = S_tᵀ q_t.

    q, k ``[batch, heads, time, key_dim]``, v ``[batch, heads, time, value_dim]``, decay a ≤ 0 and
    rate β ``[batch, heads, time]``, S_0 = state ``[batch, heads, key_dim, value_dim]``. Returns o
    like v, and the last state.
    """
    parts = []
    for at in range(0, v.shape[2], CHUNK):
        here = slice(at, at + CHUNK)
        a, b = decay[:, :, here], rate[:, :, here]
        out, state = _chunk(q[:, :, here], k[:, :, here], v[:, :, here], a, b, state)
        parts.append(out)
    return torch.cat(parts, dim=2), state


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`delta_rule` of a few positions at once (section 3.3 of the paper).

    With g_t = a_1 + … + a_t, the corrections u_t = β_t (v_t − e^{a_t} S_{t−1}ᵀ k_t) solve
    u_t + β_t Σ_{s<t} e^{g_t − g_s} (k_t·k_s) u_s = β_t (v_t − e^{g_t} S_0ᵀ k_t).
    """
    total = wide(decay).cumsum(-1)  # differences of large sums lose digits in float32
    time = total.shape[-1]
    later = torch.ones(time, time, dtype=torch.bool, device=total.device).triu(1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    between = back(between.masked_fill(later, -torch.inf).exp(), v)  # e^{g_t − g_s}, or 0
    grown = back(total.exp().unsqueeze(-1), v)
    system = rate.unsqueeze(-1) * (k @ k.transpose(-1, -2)) * between
    wanted = rate.unsqueeze(-1) * (v - grown * (k @ state))
    u = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    out = grown * (q @ state) + ((q @ k.transpose(-1, -2)) * between) @ u
    last = total[..., -1:]
    left = back((last - total).exp().unsqueeze(-1), v)
    kept = back(last.exp().unsqueeze(-1), v)
    state = kept * state + (left * k).transpose(-1, -2) @ u
    return out, state


def _heads(x: Tensor, width: int) -> Tensor:
    """``[batch, time, heads · width]`` → ``[batch, heads, time, width]``."""
    return torch.unflatten(x, -1, (-1, width)).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    """x / √(Σ x² + ε), over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)
