"""Rotary position embeddings (RoFormer, arXiv 2104.09864) and the ways to stretch them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgepack.checkpoint.base import Dimensions


class Rotary:
    """Rotary positions of the blocks with some dimensions, in Hugging Face's order of halves, or
    with `neighbours` as pairs."""

    def __init__(self, dimensions: Dimensions, *, neighbours: bool = False) -> None:
        d = dimensions
        width = d.rotary_dim
        exponent = torch.arange(0, width, 2).double() / width
        self.neighbours = neighbours
        self.frequency = d.rope_theta**-exponent
        self.long: Tensor | None = None
        """The frequencies beyond the original context, where they are others (LongRoPE)."""
        self.factor = 1.0
        """cos and sin are multiplied by this."""
        self._last: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None
        """Positions and their angles; all blocks ask for the same, one after another."""
        self.beta, self.original = 0.0, 1
        if d.rope_scaling is not None:
            scale = SCALINGS[d.rope_scaling["rope_type"]]
            self.frequency, self.factor = scale(self.frequency, d)
            self.beta = float(d.rope_scaling.get("llama_4_scaling_beta") or 0.0)
            self.original = int(d.rope_scaling.get("original_max_position_embeddings", 1))
            if "long_factor" in d.rope_scaling:
                self.long = _divided(d.rope_theta**-exponent, d.rope_scaling["long_factor"])

    def __call__(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin for the positions start … start+length−1, each ``[length, head_dim]`` (or the
        part of head_dim that is rotated). With LongRoPE, all of them turn as the last one does, as
        in transformers."""
        last = self._last
        if last is None or last[0] != (start, length):
            last = self._last = (start, length), self._angles(start, length)
        return last[1]

    def _angles(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        beyond = self.long is not None and start + length > self.original
        frequency = self.long if self.long is not None and beyond else self.frequency
        angle = torch.arange(start, start + length).double()[:, None] * frequency
        if self.neighbours:
            angle = angle.repeat_interleave(2, dim=-1)
        else:
            angle = torch.cat([angle, angle], dim=-1)
        return (angle.cos() * self.factor).float(), (angle.sin() * self.factor).float()

    def temperature(self, positions: Tensor) -> Tensor:
        """1 + β·log(1 + ⌊position / original context⌋), by which the queries of Llama 4 and
        Ministral 3 are multiplied; 1 in other models."""
        spans = positions.double().div(self.original).floor()
        return (1 + self.beta * torch.log1p(spans)).float()

    def tempered(self, q: Tensor, start: int) -> Tensor:
        """Queries ``[…, length, head_dim]`` from the position `start` on, times `temperature`."""
        if not self.beta:
            return q
        positions = torch.arange(start, start + q.shape[-2])
        return q * self.temperature(positions).to(q.device)[:, None]

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x ``[…, length, head_dim]`` turned by its positions."""
        turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        if self.neighbours:
            pairs = torch.unflatten(turned, -1, (-1, 2))
            other = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            other = torch.cat([-second, first], dim=-1)
        turned = turned * cos + other * sin
        return torch.cat([turned, kept], dim=-1) if kept.shape[-1] else turned


Scaling = Callable[[Tensor, Dimensions], tuple[Tensor, float]]
"""(frequencies ``[n]`` float64, dimensions) → (frequencies, factor of cos and sin)."""


def _linear(frequency: Tensor, d: Dimensions) -> tuple[Tensor, float]:
    assert d.rope_scaling is not None
    return frequency / float(d.rope_scaling["factor"]), 1.0


def _llama3(frequency: Tensor, d: Dimensions) -> tuple[Tensor, float]:
    """Long waves are stretched by `factor`, short ones not, with a ramp in between."""
    assert d.rope_scaling is not None
    scaling = d.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency, 1.0


def _yarn(frequency: Tensor, d: Dimensions) -> tuple[Tensor, float]:
    """YaRN (Peng et al., arXiv 2309.00071, section 3.2): a ramp over dimensions, between those that
    turn `beta_fast` and `beta_slow` times in the original context."""
    assert d.rope_scaling is not None
    scaling, width = d.rope_scaling, 2 * len(frequency)

    def dimension(turns: float) -> float:
        context = scaling["original_max_position_embeddings"]
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(d.rope_theta))

    low, high = dimension(scaling["beta_fast"]), dimension(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(len(frequency)).double() - low) / span).clamp(0, 1)
    stretched = frequency / scaling["factor"]
    return stretched * ramp + frequency * (1 - ramp), scaling["attention_factor"]


def _longrope(frequency: Tensor, d: Dimensions) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al., arXiv 2402.13753): a divisor for every frequency; the short ones,
    which are right up to the original context."""
    assert d.rope_scaling is not None
    short = _divided(frequency, d.rope_scaling["short_factor"])
    return short, d.rope_scaling["attention_factor"]


def _divided(frequency: Tensor, divisors: Sequence[float]) -> Tensor:
    return frequency / torch.tensor(divisors, dtype=torch.float64)


def _proportional(frequency: Tensor, d: Dimensions) -> tuple[Tensor, float]:
    """Gemma 4's: the slow pairs stay as they are, and the others turn as in a whole head."""
    assert d.rope_scaling is not None
    turning = int(d.rope_scaling["partial_rotary_factor"] * d.head_dim // 2)
    return torch.where(torch.arange(len(frequency)) < turning, frequency, 0.0), 1.0


SCALINGS: Mapping[str, Scaling] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}


def original_context(d: Dimensions) -> int | None:
    """Positions up to which LongRoPE's short divisors hold; None in other models."""
    scaling = d.rope_scaling or {}
    return scaling["original_max_position_embeddings"] if "long_factor" in scaling else None


def reaching(d: Dimensions, context: int) -> Dimensions:
    """The dimensions whose rotary positions hold for texts of up to `context` positions: beyond
    LongRoPE's original context, its long divisors take the place of the short ones. They are then
    used for short texts too, as in llama.cpp; transformers chooses by the length of each text."""
    original, scaling = original_context(d), d.rope_scaling or {}
    if original is None or context <= original:
        return d
    return replace(d, rope_scaling={**scaling, "short_factor": scaling["long_factor"]})


def key(d: Dimensions) -> tuple[Any, ...]:
    """What the rotary positions of blocks depend on."""
    return d.rope_theta, d.head_dim, d.partial_rotary_factor, repr(d.rope_scaling)
