"""Benchmarks: models take turns on a device, round after round, and so do its limits.

A round runs every model once for every number of threads, in a process of its own: A B A B. What
the machine does meanwhile affects all of them alike, so that ratios within a round are better known
than any speed.
"""

from __future__ import annotations

import datetime
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

from edgepack.bench.predictions import compare_predictions, prediction_of
from edgepack.bench.protocol import (
    Case,
    Ended,
    Event,
    Job,
    Loaded,
    Multiplied,
    Multiply,
    Read,
    ReadMemory,
    RunModel,
    Started,
    Timed,
    read_events,
)
from edgepack.bench.quiet import Watch, remarks
from edgepack.bench.results import (
    Bench,
    Loading,
    ModelResult,
    Timing,
    Work,
)
from edgepack.bench.work import attached, work_of
from edgepack.core.plugins import names as plugin_names
from edgepack.core.progress import Progress, Steps
from edgepack.device_profile.limits import Ceilings, Product, ReadSpeed
from edgepack.devices.base import Device
from edgepack.errors import EdgepackError
from edgepack.formats import stock
from edgepack.runtimes.models import Model

PLAIN = ("f32", "f16", "q8_0")
"""Types whose products are always timed, so that files can be read against the same limit."""
FAILED = "the device's worker ended without a word (exit code {}): {}"


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
    timeout: float = 3600.0
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

    def add(self, events: Sequence[Event]) -> float:
        """Add a round; the processor time that it took."""
        for event in events:
            if isinstance(event, Timed):
                self.timed[event.index].append(event)
        self.started = _one(events, Started)
        self.loaded.append(_one(events, Loaded))
        self.ended.append(_one(events, Ended))
        spoken = [one.memory.peak for one in events if isinstance(one, Loaded | Timed | Ended)]
        self.peaks.append(max(peak or 0 for peak in spoken))
        return self.ended[-1].cpu_seconds


def bench(request: Request, device: Device) -> Steps[Bench]:
    """Measure on a device. Raises `EdgepackError` for models that it cannot run."""
    if not request.models or not request.cases:
        raise EdgepackError("nothing to measure", hint="name a model, and prompts or tokens")
    works = [work_of(model) for model in request.models]
    promised = [prediction_of(model) for model in request.models]
    about = device.describe()
    where = {"name": device.name, **about}
    jobs = [_job(model, device, request.cases) for model in request.models]
    watch = Watch(device)
    turns: dict[tuple[int, int], _Turns] = defaultdict(_Turns)
    keys = list(product(range(len(request.models)), request.threads))
    for done, (_, key) in enumerate(product(range(request.rounds), keys)):
        yield Progress("bench", done, request.rounds * len(keys), request.models[key[0]].name)
        job = jobs[key[0]].model_copy(update={"threads": key[1]})
        watch.spent += turns[key].add(do(job, device, request.timeout))
    types = sorted({kind for work in works for kind in work.types})
    ceilings = Ceilings()
    if request.limits:
        ceilings = yield from _ceilings(request, device, types, watch)
    quiet = watch.end()
    names = short_names([model.name for model in request.models])
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


def do(job: Job, device: Device, timeout: float) -> list[Event]:
    """Have a device's worker do a job; what it said."""
    output = device.run([*worker(device, job), job.model_dump_json()], timeout)
    events = read_events(output.stdout, device.name)
    if output.exit_code != 0 or not events or not isinstance(events[-1], Ended):
        said = (output.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EdgepackError(f"{device.name}: {FAILED.format(output.exit_code, said[:200])}")
    return events


def worker(device: Device, job: Job) -> list[str]:
    """The beginning of the command that does a job on a device."""
    if device.name == "local":
        return [sys.executable, "-m", "edgepack.bench.worker"]
    if isinstance(job, RunModel) and job.model.endswith(".onnx"):
        raise EdgepackError(
            f"{device.name}: ONNX models are measured on this machine only",
            hint="measure the GGUF of the same recipe there",
        )
    raise NotImplementedError


T = TypeVar("T", bound=Event)


def _one(events: Iterable[Event], kind: type[T]) -> T:
    return next(event for event in events if isinstance(event, kind))


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
            seconds=[one.seconds for one in turn.loaded],
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
        seconds=[one.seconds for one in timed],
        joules=[one.joules for one in timed if one.joules is not None],
        memory=timed[-1].memory,
    )


def _ceilings(
    request: Request, device: Device, types: Sequence[str], watch: Watch
) -> Steps[Ceilings]:
    """Measure the device's limits; products only where the models have types of ggml's."""
    yield Progress("limits", 0, 1 + len(request.threads), "reading memory")
    events = do(ReadMemory(threads=tuple(request.threads)), device, request.timeout)
    watch.spent += _one(events, Ended).cpu_seconds
    speeds: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if isinstance(event, Read):
            speeds[event.threads].append(event.bytes_per_second)
    products: list[Product] = []
    wanted = _types(types, every=request.all_types)
    for done, threads in enumerate(request.threads if wanted else (), 1):
        yield Progress("limits", done, 1 + len(request.threads), f"products, {threads} threads")
        job = Multiply(threads=threads, types=wanted)
        events = do(job, device, request.timeout)
        watch.spent += _one(events, Ended).cpu_seconds
        products += _products(job, events)
    memory = [ReadSpeed(threads=t, bytes_per_second=found) for t, found in speeds.items()]
    return Ceilings(memory=memory, products=products)


def _types(types: Sequence[str], *, every: bool) -> tuple[str, ...]:
    """Types whose products are to be timed."""
    known = {*plugin_names("formats")} & {*stock()} | {*PLAIN}
    own = known & set(types)
    return tuple(sorted(known if every else own | set(PLAIN))) if own or every else ()


def _products(job: Multiply, events: Sequence[Event]) -> list[Product]:
    found: dict[tuple[str, int], list[Multiplied]] = defaultdict(list)
    for event in events:
        if isinstance(event, Multiplied):
            found[event.type, event.batch].append(event)
    return [
        Product(
            type=kind,
            threads=job.threads,
            batch=batch,
            rows=job.rows,
            columns=job.columns,
            bytes=timed[0].bytes,
            seconds=[one.seconds for one in timed],
        )
        for (kind, batch), timed in found.items()
    ]
