"""The inputs of all blocks of one forward pass, until the backward pass takes them back."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.finetune.int4.hadamard import rotate

Kind = Literal["memory", "bfloat16", "int4", "disk"]
LEVELS = 7
"""4-bit codes are −7 … 7."""


class Saved(ABC):
    """A stack of hidden states ``[batch, time, hidden]``, float32 when they come back."""

    @abstractmethod
    def push(self, x: Tensor) -> None:
        """Keep x."""

    @abstractmethod
    def pop(self) -> Tensor:
        """The last one kept."""

    def close(self) -> None:  # noqa: B027  (most have nothing to free)
        """Free what is kept."""


@dataclass
class InMemory(Saved):
    """As they are, or rounded to bfloat16."""

    dtype: torch.dtype = torch.float32
    kept: list[Tensor] = field(default_factory=list)

    def push(self, x: Tensor) -> None:
        """See `Saved`."""
        self.kept.append(x.detach().to(self.dtype))

    def pop(self) -> Tensor:
        """See `Saved`."""
        return self.kept.pop().float()


@dataclass
class InFourBits(Saved):
    """Each run of values is turned by a Hadamard matrix, which spreads its outliers, and rounded to
    4 bits with a scale of its own. The gradient is then of a slightly different input."""

    kept: list[tuple[Tensor, Tensor, torch.Size]] = field(default_factory=list)

    def push(self, x: Tensor) -> None:
        """See `Saved`."""
        run = run_of(x.shape[-1])
        turned = rotate(x.detach().reshape(-1, run), run)
        scale = turned.abs().amax(1, keepdim=True).clamp_min(1e-30) / LEVELS
        codes = (turned / scale).round_().to(torch.int8) + 8
        flat = functional.pad(codes.to(torch.uint8).flatten(), (0, codes.numel() % 2))
        packed = flat[::2] | flat[1::2] << 4
        self.kept.append((packed, scale, x.shape))

    def pop(self) -> Tensor:
        """See `Saved`."""
        packed, scale, shape = self.kept.pop()
        codes = torch.stack([packed & 15, packed >> 4], 1).flatten()[: shape.numel()].float() - 8
        run = run_of(shape[-1])
        return rotate(codes.view(-1, run) * scale, run).view(shape)


class OnDisk(Saved):
    """In an unnamed temporary file."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (see `close`)
        self._kept: list[tuple[int, torch.Size, torch.device]] = []

    def push(self, x: Tensor) -> None:
        """See `Saved`."""
        self._kept.append((self._file.tell(), x.shape, x.device))
        self._file.write(x.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    def pop(self) -> Tensor:
        """See `Saved`."""
        start, shape, device = self._kept.pop()
        found = torch.empty(shape)
        self._file.seek(start)
        self._file.readinto(found.view(torch.uint8).numpy().data)
        self._file.seek(start)
        return found.to(device)

    def close(self) -> None:
        """See `Saved`."""
        self._file.close()


BYTES: Mapping[Kind, float] = {"memory": 4, "bfloat16": 2, "int4": 0.5 + 4 / 64, "disk": 0}
"""Bytes of memory that one value takes."""


def saved(kind: Kind) -> Saved:
    """An empty stack."""
    if kind == "int4":
        return InFourBits()
    if kind == "disk":
        return OnDisk()
    return InMemory(torch.bfloat16 if kind == "bfloat16" else torch.float32)


def run_of(width: int) -> int:
    """Values that are turned together: the largest power of two up to 64 that divides the width."""
    return min(64, width & -width)
