"""A page's benchmark: `edgepack bench` with the program of the phone, on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.bench.protocol import Event, Job, RunModel, Timed
from edgepack.bench.run import Request, bench, default_threads
from edgepack.bench.workers import TIMEOUT, Worker
from edgepack.core.progress import finish
from edgepack.demo.store import Model
from edgepack.devices.local import Local
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model as Runnable

MOST = {"prompt": 8192, "decode": 4096, "rounds": 100, "threads": 1024}


@dataclass
class _Heard(Worker):
    """A worker whose cases are told as they are done, and that can be stopped between rounds."""

    tell: Callable[[int, RunModel, Timed], None] = lambda *_: None
    stopped: Callable[[], bool] = lambda: False
    rounds: int = field(default=0)

    def do(self, job: Job) -> list[Event]:
        """See `Worker`."""
        if self.stopped():
            raise EdgepackError("the benchmark was stopped")
        events = super().do(job)
        if isinstance(job, RunModel):
            for event in events:
                if isinstance(event, Timed):
                    self.tell(self.rounds, job, event)
            self.rounds += 1
        return events


def measure(
    model: Model,
    request: dict[str, Any],
    program: Path,
    tell: Callable[[dict[str, Any]], None],
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Do what a request of `bench` asks; gives bench.json's content. `tell` gets `case` events."""
    device = Local()
    numbers = {key: _number(request, key) for key in MOST}
    threads = numbers["threads"] or max(1, default_threads(device) - 1)
    named = request.get("adapters") or []
    if not isinstance(named, list):
        raise EdgepackError("adapters: a list of names is expected")
    adapters = tuple((model.adapter(name), 1.0) for name in named)

    def told(round_: int, job: RunModel, event: Timed) -> None:
        case = job.cases[event.index]
        about = {"kind": case.kind, "tokens": case.tokens, "seconds": event.seconds}
        tell({"event": "case", "round": round_, **about})

    name = " + ".join([model.name, *map(str, named)])
    measured = bench(
        Request(
            [Runnable(name, model.base.file, model.factors, adapters)],
            threads=[min(threads, os.cpu_count() or 1)],
            prompts=[numbers["prompt"]],
            decode=numbers["decode"],
            rounds=max(1, numbers["rounds"]),
        ),
        device,
        _Heard(device, (str(program),), TIMEOUT, tell=told, stopped=stopped),
    )
    return finish(measured).model_dump(mode="json")


def _number(request: dict[str, Any], key: str) -> int:
    value = request.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST[key]:
        raise EdgepackError(f"{key}: a number up to {MOST[key]} is expected")
    return value
