"""An adapter in memory: ΔW = lora_B · lora_A for some weights of one packed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgepack.core.adapters import BaseId
from edgepack.core.linalg import least_rank

__all__ = ["Adapter", "BaseId", "Lora"]


@dataclass(frozen=True)
class Lora:
    """ΔW = lora_B · lora_A, with lora_A ``[rank, in]`` and lora_B ``[out, rank]``, both float32.
    PEFT's scale alpha / rank is already multiplied in."""

    lora_A: Tensor
    lora_B: Tensor

    @property
    def rank(self) -> int:
        """Rows of lora_A."""
        return self.lora_A.shape[0]

    def delta(self) -> Tensor:
        """ΔW ``[out, in]``."""
        return self.lora_B @ self.lora_A

    def scaled(self, scale: float) -> Lora:
        """The pair whose ΔW is `scale` times as large."""
        return Lora(self.lora_A, self.lora_B * scale)

    def scaled_evenly(self, scale: float) -> Lora:
        """The same with √scale on either side, as PEFT takes a pair's scale into account where it
        adds pairs factor by factor (`combine.linear`)."""
        if scale == 1:
            return self
        root = math.sqrt(abs(scale))
        return Lora(self.lora_A * math.copysign(root, scale), self.lora_B * root)

    def balanced(self) -> Lora:
        """The same ΔW, with each row of lora_A and its column of lora_B about equally large. The
        factors are powers of two, so that nothing is rounded. A trained lora_B is small, and its
        values would lose bits in float16, whose normal numbers end at 6e-5."""
        a, b = self.lora_A.abs().amax(1), self.lora_B.abs().amax(0)
        used = (a > 0) & (b > 0)
        ratio = torch.where(used, a / b, torch.ones_like(a))
        scale = torch.exp2((ratio.log2() / 2).round().clamp(-60, 60))
        return Lora(self.lora_A / scale[:, None], self.lora_B * scale)

    def reduced(self) -> Lora:
        """The same ΔW of the least rank, up to rounding; the pair itself if that is its rank."""
        B, A = least_rank(self.lora_B, self.lora_A)
        return self if A is self.lora_A else Lora(A, B).balanced()

    @staticmethod
    def joined(parts: list[Lora]) -> Lora:
        """One pair whose ΔW is the sum of those of `parts`."""
        return Lora(torch.cat([p.lora_A for p in parts]), torch.cat([p.lora_B for p in parts], 1))


@dataclass(frozen=True)
class Adapter:
    """Pairs by the Hugging Face name of the weight that they change (``….q_proj.weight``), and the
    base that they were trained on. `about` says how, for adapter.json; its keys ``mode`` and
    ``lora_alpha`` become fields there. `notes` are warnings of whoever read it from files."""

    weights: Mapping[str, Lora]
    base: BaseId
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
