"""An adapter in memory: ΔW = lora_B · lora_A for some weights of one packed model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lora:
    """ΔW = lora_B · lora_A, with lora_A ``[rank, in]`` and lora_B ``[out, rank]``, both float32.
    PEFT's scale alpha / rank is already multiplied into lora_B."""

    lora_A: Tensor
    lora_B: Tensor

    @property
    def rank(self) -> int:
        """Rows of lora_A."""
        return self.lora_A.shape[0]

    def delta(self) -> Tensor:
        """ΔW ``[out, in]``."""
        return self.lora_B @ self.lora_A

    @staticmethod
    def joined(parts: list[Lora]) -> Lora:
        """One pair whose ΔW is the sum of those of `parts`."""
        return Lora(torch.cat([p.lora_A for p in parts]), torch.cat([p.lora_B for p in parts], 1))


@dataclass(frozen=True)
class BaseId:
    """Which packed model an adapter belongs to: its name, and a digest of its files with weights.
    The name is for people; the digest decides."""

    name: str
    digest: str

    @staticmethod
    def of(name: str, files: Mapping[str, str]) -> BaseId:
        """From file name → sha256 of the files with weights."""
        text = "\n".join(f"{file} {sha256}" for file, sha256 in sorted(files.items()))
        return BaseId(name, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class Adapter:
    """Pairs by the Hugging Face name of the weight that they change (``….q_proj.weight``), and the
    base that they were trained on. `about` says how, for adapter.json."""

    weights: Mapping[str, Lora]
    base: BaseId
    about: Mapping[str, Any] = field(default_factory=dict)
