"""Causal convolutions over a few positions, and LFM2's mixer, which is a gated one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.checkpoint.base import Dimensions

Linear = Callable[[str, Tensor], Tensor]


@dataclass
class ConvolutionCache:
    """The last inputs of a convolution, ``[batch, kernel − 1, channels]``; first zeros."""

    past: Tensor

    @classmethod
    def empty(
        cls, batch: int, channels: int, d: Dimensions, device: torch.device
    ) -> ConvolutionCache:
        """Before the first position."""
        return cls(torch.zeros(batch, d.conv_kernel - 1, channels, device=device))


def causal_convolution(x: Tensor, kernel: Tensor, cache: ConvolutionCache | None) -> Tensor:
    """y_t = Σ_j k_j · x_{t − n + 1 + j} channel by channel, with x = 0 before the first position.

    x ``[batch, time, channels]``, kernel ``[channels, 1, n]``, y like x. A `cache` has the inputs
    before x, and gets those of x.
    """
    taps, time = kernel[:, 0].unbind(-1), x.shape[1]
    past = x.new_zeros(x.shape[0], len(taps) - 1, x.shape[2]) if cache is None else cache.past
    x = torch.cat([past, x], dim=1)
    if cache is not None:
        cache.past = x[:, time:].clone()
    y = taps[0] * x[:, :time]
    for j, tap in enumerate(taps[1:], 1):
        y = y + tap * x[:, j : j + time]
    return y


def short_conv(
    weights: Mapping[str, Tensor], x: Tensor, linear: Linear, cache: ConvolutionCache | None
) -> Tensor:
    """LFM2's mixer: W_out (c ∘ conv(b ∘ u)), where W_in x is b, c and u one behind another.

    x ``[batch, time, hidden]``, the output too. Source: ``Lfm2ShortConv`` in transformers.
    """
    b, c, u = linear("conv_in", x).chunk(3, dim=-1)
    return linear("conv_out", c * causal_convolution(b * u, weights["conv"], cache))
