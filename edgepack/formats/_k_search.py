"""Search for the grids of K-quants: many super-blocks at once, in ordinary PyTorch.

Each sub-block comes with several float scales. First d and dmin are fitted to the best of them.
Then each sub-block takes the integers with the least true error among the roundings of all its
float scales and their neighbours. Then d and dmin are fitted again by least squares, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.formats._levels import Levels, Uniform
from edgepack.formats._search import best_first, dot, half, one_scale, ratio, reciprocal

ROUNDS = 1
"""Alternations of (integers given d, dmin) and (d, dmin given the integers)."""


@dataclass(frozen=True)
class State:
    """One grid per super-block: d, dmin ``[n]``; scales, mins ``[n, subs]``; error ``[n]``."""

    error: Tensor
    d: Tensor
    dmin: Tensor
    scales: Tensor
    mins: Tensor

    def better(self, other: State) -> State:
        """The state with the smaller error, block by block."""
        wins = other.error < self.error
        pairs = zip(self.fields(), other.fields(), strict=True)
        return State(*(torch.where(wins.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in pairs))

    def fields(self) -> tuple[Tensor, ...]:
        """The fields, in the order of the constructor."""
        return self.error, self.d, self.dmin, self.scales, self.mins

    def mirror(self) -> State:
        """The same grid for −x: both factors change sign, the integers stay."""
        return State(self.error, -self.d, -self.dmin, self.scales, self.mins)


@dataclass(frozen=True)
class Problem:
    """n super-blocks to fit: x, w ``[n, subs, unit]`` and the ranges of codes and integers."""

    x: Tensor
    w: Tensor
    levels: Levels
    scale_range: Uniform
    min_range: Uniform

    def level(self, s: Tensor, z: Tensor) -> Tensor:
        """Nearest levels on s·level − z, s and z ``[n, subs]``."""
        shifted = self.x + z.unsqueeze(-1)
        return self.levels.nearest(shifted.mul_(reciprocal(s).unsqueeze(-1)))

    def errors(self, s: Tensor, z: Tensor) -> Tensor:
        """Weighted squared errors ``[n, subs]`` with the nearest codes."""
        miss = self.level(s, z).mul_(s.unsqueeze(-1)).sub_(z.unsqueeze(-1)).sub_(self.x)
        return dot(self.w * miss, miss)

    def integers(self, value: Tensor, factor: Tensor, allowed: Uniform) -> Tensor:
        """value / factor ``[n]`` rounded into the range."""
        wide = factor.reshape(-1, *[1] * (value.dim() - 1))
        return allowed.nearest(value * reciprocal(wide))

    def choose(self, d: Tensor, dmin: Tensor, scales: Tensor, mins: Tensor) -> State:
        """The best of M integer pairs per sub-block; scales and mins ``[n, M, subs]``."""
        trials = [
            self.errors(d[:, None] * sc, dmin[:, None] * mi)
            for sc, mi in zip(scales.unbind(1), mins.unbind(1), strict=True)
        ]
        error, best = torch.stack(trials, 1).min(dim=1, keepdim=True)
        scales, mins = (values.gather(1, best).squeeze(1) for values in (scales, mins))
        return State(error.sum((1, 2)), d, dmin, scales, mins)

    def neighbours(self, state: State) -> State:
        """`choose` among integers one step up or down, and the min that fits best."""
        d, dmin = state.d[:, None], state.dmin[:, None]
        scales, mins = [], []
        for step in (-1, 0, 1):
            sc = (state.scales + step).clamp(self.scale_range.low, self.scale_range.high)
            level = self.level(d * sc, dmin * state.mins)
            over = dot(self.w, (d * sc).unsqueeze(-1) * level - self.x)
            fitted = self.integers(ratio(over, self.w.sum(-1)), state.dmin, self.min_range)
            for mi in (state.mins, fitted):
                scales.append(sc)
                mins.append(mi)
        return self.choose(state.d, state.dmin, torch.stack(scales, 1), torch.stack(mins, 1))

    def refit_factors(self, state: State) -> State:
        """d and dmin by weighted least squares, integers and codes fixed; then the true error."""
        level = self.level(state.d[:, None] * state.scales, state.dmin[:, None] * state.mins)
        a = (level * state.scales.unsqueeze(-1)).flatten(1)
        b = -state.mins.unsqueeze(-1).expand_as(level).flatten(1)
        x, w = self.x.flatten(1), self.w.flatten(1)
        aa, ab, bb = dot(w * a, a), dot(w * a, b), dot(w * b, b)
        ax, bx = dot(w * a, x), dot(w * b, x)
        determinant = aa * bb - ab * ab
        # Where a and b are nearly parallel (or there are no mins), fit d alone.
        full = determinant > 1e-6 * aa * bb
        alone = ratio(ax - state.dmin * ab, aa)
        d = torch.where(full, ratio(ax * bb - bx * ab, determinant), alone)
        dmin = torch.where(full, ratio(bx * aa - ax * ab, determinant), state.dmin)
        d, dmin = half(d), half(dmin)
        errors = self.errors(d[:, None] * state.scales, dmin[:, None] * state.mins)
        return State(errors.sum(1), d, dmin, state.scales, state.mins)

    def polish(self, state: State) -> State:
        """`ROUNDS` alternations; the best state of all is kept."""
        for _ in range(ROUNDS):
            state = state.better(self.neighbours(state))
            state = state.better(self.refit_factors(state))
        return state.better(self.neighbours(state))

    def solve(self, s: Tensor, z: Tensor, starts: int) -> list[State]:
        """Grids from several d, given float scales s and offsets z ``[n, M, subs]``, best first."""
        weight = self.w.sum(-1)
        probes = super_probes(self.scale_range)
        _, d = one_scale(s[:, 0], weight, self.scale_range, probes, starts)
        _, dmin = one_scale(z[:, 0], weight, self.min_range, super_probes(self.min_range), 1)
        dmin = dmin[:, 0]
        mins = self.integers(z, dmin, self.min_range)
        return [
            self.polish(self.choose(one, dmin, self.integers(s, one, self.scale_range), mins))
            for one in d.unbind(1)
        ]


def super_probes(allowed: Uniform) -> Tensor:
    """Probes for d: the outer half of the integers and a little beyond (any smaller one wastes
    bits); the negative ones too where the range has them."""
    ends = torch.tensor([end for end in (allowed.low, allowed.high) if end], dtype=torch.float32)
    spans = torch.cat([torch.linspace(0.5, 1.08, 30), torch.ones(1)])
    probes = (ends[:, None] * spans).flatten()
    # The 1 is for a range that is only {0}.
    distinct: Tensor = torch.unique(torch.cat([probes, probes.round(), torch.ones(1)]))
    return distinct.unsqueeze(1)


def stack(states: list[State]) -> State:
    """Grids ``[n, K, …]``, the best first."""
    fields = zip(*(state.fields() for state in states), strict=True)
    return State(*best_first(*(torch.stack(values, 1) for values in fields)))
