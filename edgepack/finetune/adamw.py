"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), its moments in float32 or in 8 bits.

In 8 bits the moments are rounded in blocks with a scale each, as in Dettmers et al. (arXiv
2110.02861), but on a curve instead of a dynamic tree: the first moment's square root, the second's
fourth root, so that small moments of a block do not vanish beside its largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

States = Literal["float32", "int8"]
BLOCK = 256
"""Moments that share a scale."""


@dataclass(frozen=True)
class AdamW:
    """The rule of a step. `states` is how moments are kept between steps."""

    learning_rate: float
    weight_decay: float = 0.0
    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    states: States = "float32"

    def initial(self, p: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before the first step."""
        return self._kept(torch.zeros_like(p), torch.zeros_like(p))

    def step(
        self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], number: int, rate: float
    ) -> dict[str, Tensor]:
        """Change p by step `number` (from 1) with the gradient g, at `rate` times the learning
        rate; returns the new state."""
        m, v = self._moments(state, p)
        m.lerp_(g, 1 - self.first)
        v.mul_(self.second).addcmul_(g, g, value=1 - self.second)
        reach = rate * self.learning_rate
        p.mul_(1 - reach * self.weight_decay)
        size = (v / (1 - self.second**number)).sqrt_().add_(self.epsilon)
        p.addcdiv_(m, size, value=-reach / (1 - self.first**number))
        return self._kept(m, v)

    def _kept(self, m: Tensor, v: Tensor) -> dict[str, Tensor]:
        if self.states == "float32":
            return {"m": m, "v": v}
        return _rounded("m", m, 2, 127) | _rounded("v", v, 4, 255)

    def _moments(self, state: Mapping[str, Tensor], p: Tensor) -> tuple[Tensor, Tensor]:
        if self.states == "float32":
            return state["m"], state["v"]
        return _values(state, "m", 2, 127, p), _values(state, "v", 4, 255, p)


def _rounded(name: str, x: Tensor, root: int, levels: int) -> dict[str, Tensor]:
    """Codes of sign·|x / largest|^(1/root), and the largest of every block."""
    flat = functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    largest = flat.abs().amax(1, keepdim=True)
    share = (flat.abs() / largest.clamp_min(1e-38)) ** (1 / root)
    codes = (flat.sign() * share * levels).round_()
    kind = torch.int8 if levels == 127 else torch.uint8  # second moments have no sign
    return {name: codes.to(kind), f"{name}.largest": largest}


def _values(state: Mapping[str, Tensor], name: str, root: int, levels: int, like: Tensor) -> Tensor:
    share = state[name].float() / levels
    flat = share.sign() * share.abs() ** root * state[f"{name}.largest"]
    return flat.flatten()[: like.numel()].view_as(like)
