"""Progress of long work: stages yield it, the CLI draws it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a stage are finished; `label` names the next one."""

    stage: str
    done: float
    total: float
    label: str = ""


T = TypeVar("T")
Steps = Generator[Progress, None, T]
"""A computation that reports as it goes and returns a T."""


def finish(steps: Steps[T], progress: Callable[[Progress], None] | None = None) -> T:
    """Run to the end, and return the result; `progress` hears what is being done."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if progress is not None:
            progress(step)
