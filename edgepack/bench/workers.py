"""Workers on a device: how they get there, and what they say of a job."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgepack.bench.protocol import Ended, Event, Job, read_events
from edgepack.core.progress import Progress, Steps
from edgepack.devices.base import Device
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model

HERE = (sys.executable, "-m", "edgepack.bench.worker")
"""The command of the worker on this machine."""
TIMEOUT = 3600.0
"""Seconds for one job."""


@dataclass
class Worker:
    """A program on a device that does jobs (see `protocol`), each in a process of its own."""

    device: Device
    command: Sequence[str] = HERE
    timeout: float = TIMEOUT
    spent: float = 0.0
    """Processor time of all jobs until now, in seconds."""

    def do(self, job: Job) -> list[Event]:
        """What the worker says of a job. Raises `EdgepackError` for one that failed."""
        output = self.device.run([*self.command, job.model_dump_json()], self.timeout)
        events = read_events(output.stdout, str(self.device))
        if output.exit_code != 0 or not events or not isinstance(events[-1], Ended):
            said = (output.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise EdgepackError(
                f"{self.device}: the worker ended before its job was done, with exit code "
                f"{output.exit_code} ({said[:200]})",
                hint="the device may have no memory left: try a smaller model or context",
            )
        self.spent += events[-1].cpu_seconds
        return events


def start(
    device: Device, about: Mapping[str, Any], models: Sequence[Model], timeout: float
) -> Steps[Worker]:
    """A worker for these models: Python here; elsewhere a static program that is compiled once and
    sent there. `about` is what the device says of itself."""
    if device.name == "local":
        return Worker(device, HERE, timeout)
    for model in models:
        if model.base.suffix == ".onnx":
            raise EdgepackError(
                f"{model.name}: ONNX models are measured on this machine only",
                hint=f"on {device}, measure the GGUF of the same recipe",
            )
    from edgepack.native.build import make_program
    from edgepack.native.variants import choose_variant

    variant = choose_variant(about)
    yield Progress("worker", 0, 1, f"{variant}: is compiled once, which takes some minutes")
    program = make_program("bench", variant)
    yield Progress("worker", 0, 1, f"{variant}: is sent to {device}")
    return Worker(device, (device.push(program),), timeout)


T = TypeVar("T", bound=Event)


def one(events: Iterable[Event], kind: type[T]) -> T:
    """The first event of a kind. Raises `EdgepackError` where a worker has not said it."""
    for event in events:
        if isinstance(event, kind):
            return event
    raise EdgepackError(
        f"the worker ended without its line {kind.__name__.lower()!r}",
        hint="worker and edgepack must be of the same version",
    )
