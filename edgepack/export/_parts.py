"""What exporters know of a weight before they read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """The formats of Q, L and R, and the rank (0: no L and R)."""

    Q: str
    rank: int = 0
    L: str | None = None
    R: str | None = None
