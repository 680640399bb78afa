"""A stage of which every ingredient is a field, and a process of its own that makes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.core.disk import signed
from edgepack.core.progress import Progress
from edgepack.core.stage import Stage


@dataclass(frozen=True)
class Made(Stage):
    """Writes its steps one by one, each only if a killed run has not; `log` gets a line for each
    that was made, with who made it."""

    name: str = "calibrate"
    code: tuple[str, ...] = ("edgepack.core.linalg",)
    given: Mapping[str, object] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    steps: int = 1
    pause: float = 0.0
    log: Path | None = None

    def options(self):
        return dict(self.given)

    def run(self, folder, executor):
        for number in range(self.steps):
            yield Progress(self.name, number, self.steps)
            place = folder / f"made-{number}"
            if place.exists():
                continue
            time.sleep(self.pause)
            if self.log:
                with self.log.open("a") as log:
                    log.write(f"{os.getpid()} {number}\n")
            place.with_name("x.tmp").write_text(f"step {number}")
            place.with_name("x.tmp").rename(place)


@contextmanager
def writing(stage: Stage) -> Iterator[Path]:
    """The folder of a stage that this process makes."""
    with signed(stage.result.lock) as mine:
        assert mine
        with stage._writing() as folder:
            yield folder


def ended(child: int, seconds: float = 60) -> int:
    """The exit code of a process, at its end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise AssertionError("it does not end")


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Until something has happened in another process."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.005)
