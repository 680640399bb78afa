"""Gradients of a product in 4-bit integers: bit splitting and leverage-score sampling.

arXiv 2306.11987, section 4.2. For y = x Wᵀ with n rows, the gradient g ``[n, out]`` becomes 2n rows
of 4-bit codes, an upper and a lower half. Both gradients of the product are sums of one term for
each of the 2n rows. About n terms are kept, so that the work is that of one 4-bit product. A term
of size c_i is kept with a probability p_i ∝ c_i, Σp_i = n, and divided by p_i: this is unbiased and
has the least variance, Σ c_i² (1 − p_i)/p_i.

This is the sampling that the paper describes. Its published code keeps every row that is not zero
(appendix A.6), which is an exact 8-bit product: `weight_gradient` and `activation_gradient` do that
without probabilities. The code also clips both halves to ±6 of steps in proportion 14, which biases
gradients above 0.918 of the largest; here they are ±7 in proportion 15, which holds all.

In the weight gradient 1/p_i stands inside the sum. A device would have to round these rows again,
or keep them all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.accelerator import back, wide

HALF = 7
"""Codes of a half go from −7 to 7."""
BASE = 2 * HALF + 1
"""Step of the upper half in steps of the lower: each integer up to 112 is 15·upper + lower once."""
SMALLEST = 1e-30
"""The step is at least this, so that a gradient of zeros does not divide by zero."""


@dataclass(frozen=True)
class Halves:
    """A gradient g ``[n, out]`` as 4-bit codes: g ≈ step·(15·upper + lower)."""

    codes: Tensor
    """int8 ``[2n, out]``: the upper half of each row, then the lower half of each."""
    step: Tensor
    """Float ``[n]``, of the lower half."""

    @property
    def rows(self) -> int:
        """n."""
        return len(self.codes) // 2

    @property
    def steps(self) -> Tensor:
        """Step of each of the 2n rows."""
        return torch.cat([self.step.mul(BASE), self.step])

    def norms(self) -> Tensor:
        """Length of each of the 2n rows."""
        lengths: Tensor = torch.linalg.vector_norm(self.codes.to(self.step.dtype), dim=1)
        return lengths.mul(self.steps)

    def values(self) -> Tensor:
        """What the codes stand for, ``[n, out]``."""
        halves = self.codes.to(self.step.dtype).view(2, self.rows, -1)
        return halves[0].mul(BASE).add(halves[1]).mul(self.step[:, None])


def make_generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """Random numbers that follow from the given ones, such as a seed and the number of the step.
    torch keeps 32 bits of a CPU generator's seed, so the numbers are hashed."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "little"))


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """⌊x + u⌋ with u uniform in [0, 1): an integer next to x whose mean is x."""
    noise = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return noise.to(x.device).add_(x).floor_()


def split_bits(g: Tensor, generator: torch.Generator, *, by_row: bool = False) -> Halves:
    """g ``[n, out]`` as two halves of 4 bits. g/step is rounded to an integer up to 7·15 + 7 = 112
    at random, so the mean is g, and that integer is split exactly. All rows have one step, as in
    the paper, or `by_row` each its own."""
    largest = HALF * BASE + HALF
    magnitude = g.abs().amax(1, keepdim=True) if by_row else g.abs().amax().expand(len(g), 1)
    step = (magnitude / largest).clamp_min(SMALLEST)
    number = round_stochastically((g / step).clamp_(-largest, largest), generator)
    upper = (number / BASE).round_()
    lower = number - BASE * upper
    return Halves(torch.cat([upper, lower]).to(torch.int8), step.flatten())


def keep_probabilities(scores: Tensor, budget: int) -> Tensor:
    """p ``[m]`` in proportion to scores c ≥ 0 with Σp = budget. Those above 1 become 1 and the
    others grow in turn, until none is above 1. If fewer than `budget` scores are not 0, p is 1 for
    these and Σp is smaller.

    In descending order term k becomes 1 if (budget − k)·c_k > Σ_{i≥k} c_i. It then holds for all
    terms before it, so a sum finds what the repetition finds.
    """
    ordered, order = wide(scores).sort(descending=True)
    rest = ordered.flip(0).cumsum(0).flip(0)
    index = torch.arange(len(scores), device=ordered.device)
    certain = ((budget - index) * ordered > rest).sum()
    left = torch.where(index >= certain, ordered, 0).sum()
    share = (budget - certain) * ordered / left.clamp_min(torch.finfo(left.dtype).tiny)
    probabilities = torch.where(index < certain, 1.0, share.clamp_max(1.0))
    return back(torch.empty_like(probabilities).index_copy_(0, order, probabilities), scores)


def weight_probabilities(g: Halves, x: Tensor) -> Tensor:
    """p ``[2n]`` of the weight gradient, for x ``[n, in]``: c_i = ‖g_i‖·‖x_i‖."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1)
    return keep_probabilities(g.norms() * lengths.repeat(2), g.rows)


def activation_probabilities(g: Halves) -> Tensor:
    """p ``[2n]`` of the activation gradient: c_i = ‖g_i‖."""
    return keep_probabilities(g.norms(), g.rows)


def weight_gradient(g: Halves, x: Tensor, p: Tensor | None, generator: torch.Generator) -> Tensor:
    """gᵀ x ``[out, in]`` for x ``[n, in]``, of the rows drawn by p ``[2n]`` (None: all rows)."""
    kept, terms = _draw(g, p, generator)
    return terms.T @ x[kept % g.rows]


def activation_gradient(
    g: Halves, W: Tensor, p: Tensor | None, generator: torch.Generator
) -> Tensor:
    """g W ``[n, in]`` for W ``[out, in]``, of the rows drawn by p ``[2n]`` (None: all rows)."""
    kept, terms = _draw(g, p, generator)
    return W.new_zeros(g.rows, W.shape[1]).index_add_(0, kept % g.rows, terms @ W)


def _draw(g: Halves, p: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of the 2n rows are kept, ``[k]``, and their values over p, ``[k, out]``."""
    if p is None:
        p = torch.ones_like(g.steps)
    chance = torch.rand(p.shape, generator=generator, device=generator.device, dtype=p.dtype)
    kept = (~(chance.to(p.device) >= p)).nonzero().flatten()  # a NaN is kept, and so stays visible
    return kept, g.codes[kept].to(p.dtype) * (g.steps / p)[kept, None]
