"""Benchmarks: models take turns on a device, round after round, and so do its limits.

A round runs every model once for every number of threads, in a process of its own: A B A B. What
the machine does meanwhile affects all of them alike, so that ratios within a round are better known
than any speed.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from edgepack.bench.limits import measure_limits
from edgepack.bench.predictions import compare_predictions, prediction_of
from edgepack.bench.protocol import Case, Ended, Event, Loaded, RunModel, Started, Timed
from edgepack.bench.quiet import Watch, remarks
from edgepack.bench.results import Bench, Loading, ModelResult, Timing, Work
from edgepack.bench.work import attached, work_of
from edgepack.bench.workers import TIMEOUT, Worker, one, start
from edgepack.core.progress import Progress, Steps
from edgepack.device_profile.limits import Ceilings
from edgepack.devices.base import Device
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model


@dataclass(frozen=True)
class Request:
    """What to measure. Prompts, depths and batches are combined with one another."""

    models: Sequence[Model]
    threads: Sequence[int]
    prompts: Sequence[int] = (256,)
    decode: int = 64
    depths: Sequence[int] = (0,)
    batches: Sequence[int] = (1,)
    rounds: int = 5
    limits: bool = True
    """Measure the device's limits, too."""
    all_types: bool = False
    """Time the products of all types, not only of those in the files: for a device profile."""
    timeout: float = TIMEOUT
    """Seconds for one model's turn."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """In the order of running: shallow contexts first, as memory only grows."""
        found: list[Case] = []
        for depth, batch in product(sorted(self.depths), sorted(self.batches)):
            found += [
                Case(kind="prompt", tokens=tokens, depth=depth, batch=batch)
                for tokens in sorted(self.prompts)
            ]
            if self.decode:
                found.append(Case(kind="decode", tokens=self.decode, depth=depth, batch=batch))
        return tuple(found)


@dataclass
class _Turns:
    """What the rounds of one model with one number of threads said."""

    started: Started | None = None
    loaded: list[Loaded] = field(default_factory=list)
    timed: dict[int, list[Timed]] = field(default_factory=lambda: defaultdict(list))
    ended: list[Ended] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def add(self, events: Sequence[Event], cases: int) -> None:
        """Add a round of so many cases."""
        for event in events:
            if isinstance(event, Timed):
                self.timed[event.index].append(event)
        self.started = one(events, Started)
        if missing := set(range(cases)) - self.timed.keys():
            raise EdgepackError(
                f"the worker has not timed case {min(missing) + 1}",
                hint="worker and edgepack must be of the same version",
            )
        self.loaded.append(one(events, Loaded))
        self.ended.append(one(events, Ended))
        told = [event for event in events if isinstance(event, Loaded | Timed | Ended)]
        self.peaks.append(max(event.memory.peak or 0 for event in told))


def bench(request: Request, device: Device, worker: Worker | None = None) -> Steps[Bench]:
    """Measure on a device, by its usual worker or by one of the caller's. Raises `EdgepackError`
    for models that it cannot run."""
    if not request.models or not request.cases:
        raise EdgepackError("nothing to measure", hint="name a model, and prompts or tokens")
    names = short_names([model.name for model in request.models])
    works = [work_of(model) for model in request.models]
    promised = [prediction_of(model) for model in request.models]
    about = device.describe()
    where = {"name": device.name, **about}
    if worker is None:
        worker = yield from start(device, about, request.models, request.timeout)
    jobs = [_job(model, device, request.cases) for model in request.models]
    watch = Watch(device)
    turns: dict[tuple[int, int], _Turns] = defaultdict(_Turns)
    keys = list(product(range(len(request.models)), request.threads))
    for done, (_, key) in enumerate(product(range(request.rounds), keys)):
        yield Progress("bench", done, request.rounds * len(keys), names[key[0]])
        job = jobs[key[0]].model_copy(update={"threads": key[1]})
        turns[key].add(worker.do(job), len(request.cases))
    types = sorted({kind for work in works for kind in work.types})
    ceilings = Ceilings()
    if request.limits:
        ceilings = yield from measure_limits(
            worker, request.threads, types, every=request.all_types
        )
    quiet = watch.end(worker.spent)
    models = [
        _result(request, index, names[index], works[index], turns) for index in range(len(names))
    ]
    return Bench(
        edgepack=_version(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=where,
        rounds=request.rounds,
        models=models,
        ceilings=ceilings,
        quiet=quiet,
        remarks=[
            *remarks(models, quiet, about),
            *compare_predictions(promised, models, where),
        ],
    )


def _version() -> str:
    from importlib.metadata import version

    return version("edgepack")


def _job(model: Model, device: Device, cases: tuple[Case, ...]) -> RunModel:
    """The job for one model, whose files are on the device from then on."""
    return RunModel(
        model=device.push(model.base),
        adapters=tuple((device.push(path), scale) for path, scale in attached(model)),
        threads=1,
        cases=cases,
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Names without folders where those tell the models apart; a model that is named twice gets a
    number."""
    last = [name.rstrip("/").rpartition("/")[2] for name in names]
    chosen = [
        short if last.count(short) == names.count(name) else name
        for name, short in zip(names, last, strict=True)
    ]
    seen = [chosen[: index + 1].count(name) for index, name in enumerate(chosen)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(chosen, seen, strict=True)]


def default_threads(device: Device) -> int:
    """Physical cores of this machine, or all of another's: what llama.cpp takes, too."""
    if device.name == "local":
        import psutil

        return psutil.cpu_count(logical=False) or 1
    return int(device.describe()["cores"])


def _result(
    request: Request,
    index: int,
    name: str,
    work: Work,
    turns: dict[tuple[int, int], _Turns],
) -> ModelResult:
    """All that is known of a model."""
    model = request.models[index]
    own = {threads: turns[index, threads] for threads in request.threads}
    started = next(iter(own.values())).started
    assert started is not None
    loading = [
        Loading(
            threads=threads,
            seconds=[event.seconds for event in turn.loaded],
            before=started.memory,
            loaded=turn.loaded[-1].memory,
            steady=turn.ended[-1].memory,
            peak=turn.peaks,
        )
        for threads, turn in own.items()
    ]
    timings = [
        _timing(case, threads, turn.timed[at])
        for threads, turn in own.items()
        for at, case in enumerate(request.cases)
    ]
    return ModelResult(
        name=name,
        file=model.base.name,
        runtime=started.runtime,
        features=started.features,
        bytes=model.bytes,
        work=work,
        loading=loading,
        timings=timings,
    )


def _timing(case: Case, threads: int, timed: list[Timed]) -> Timing:
    return Timing(
        case=case,
        threads=threads,
        seconds=[event.seconds for event in timed],
        joules=[event.joules for event in timed if event.joules is not None],
        memory=timed[-1].memory,
    )
