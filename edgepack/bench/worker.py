"""The worker on this machine: ``python -m edgepack.bench.worker JOB`` (see `protocol`).

A process of its own for each turn of each model, so that memory and load time are those of this
model alone. It imports as little as it can (no torch): Python, numpy and the runtime's library take
about 55 MB, which `Started.memory` tells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgepack.bench import energy
from edgepack.bench.protocol import (
    VERSION,
    Case,
    Ended,
    Event,
    Failed,
    Job,
    Loaded,
    Memory,
    Multiply,
    ReadMemory,
    RunModel,
    Started,
    Timed,
    read_job,
)
from edgepack.errors import EdgepackError

WARM_UP = {"prompt": 32, "decode": 2}
"""Most tokens of the untimed run before the first case of a kind: every weight is read once."""
UNITS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "mapped", "RssShmem": "mapped"}


class Session(Protocol):
    """A loaded model whose contexts can be filled."""

    vocab_size: int

    def start(self, context: int, batch: int) -> None:
        """Make an empty context of that many tokens, for `batch` sequences together."""
        ...

    def run(self, ids: NDArray[np.int64]) -> None:
        """Run tokens ``[batch, time]`` after those before; logits of the last ones."""
        ...


def memory() -> Memory:
    """Of this process, now."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        import psutil

        return Memory(anonymous=psutil.Process().memory_full_info().uss)
    found = dict.fromkeys(UNITS.values(), 0)
    for line in lines:
        name, _, rest = line.partition(":")
        if name in UNITS:
            found[UNITS[name]] += int(rest.split()[0]) << 10
    return Memory(**found)


def run(job: Job) -> Iterator[Event]:
    """Do a job."""
    if isinstance(job, RunModel):
        yield from _run_model(job)
    elif isinstance(job, ReadMemory):
        from edgepack.bench.reading import read_memory

        yield Started(version=VERSION, runtime="numba", memory=memory())
        yield from read_memory(job)
    elif isinstance(job, Multiply):
        from edgepack.bench.llama_session import about
        from edgepack.bench.products import multiply

        yield Started(version=VERSION, runtime=about()[0], features=about()[1], memory=memory())
        yield from multiply(job)
    yield Ended(cpu_seconds=time.process_time(), memory=memory())


def _run_model(job: RunModel) -> Iterator[Event]:
    if job.model.endswith(".onnx"):
        from edgepack.bench.onnx_session import OnnxSession as Kind
        from edgepack.bench.onnx_session import about
    else:
        from edgepack.bench.llama_session import LlamaSession as Kind  # type: ignore[assignment]
        from edgepack.bench.llama_session import about
    runtime, features = about()
    yield Started(version=VERSION, runtime=runtime, features=features, memory=memory())
    start = time.perf_counter()
    session: Session = Kind(job)
    yield Loaded(seconds=time.perf_counter() - start, memory=memory())
    tokens, meter = np.random.default_rng(0), energy.meter()
    warm: set[str] = set()
    for index, case in enumerate(job.cases):
        if case.kind not in warm:
            warm.add(case.kind)
            few = min(case.tokens, WARM_UP[case.kind])
            _time(session, case.model_copy(update={"tokens": few, "depth": 0}), tokens)
        seconds, joules = _time(session, case, tokens, meter)
        yield Timed(index=index, seconds=seconds, joules=joules, memory=memory())


def _time(
    session: Session,
    case: Case,
    tokens: np.random.Generator,
    meter: energy.Meter | None = None,
) -> tuple[float, float | None]:
    """Seconds and joules of a case, in a new context."""
    session.start(case.context, case.batch)

    def draw(count: int) -> NDArray[np.int64]:
        return tokens.integers(0, session.vocab_size, (case.batch, count))

    if case.depth:
        session.run(draw(case.depth))
    ids = draw(case.tokens)
    steps = [ids] if case.kind == "prompt" else np.hsplit(ids, case.tokens)
    before = meter.joules() if meter else 0.0
    start = time.perf_counter()
    for step in steps:
        session.run(step)
    seconds = time.perf_counter() - start
    return seconds, meter.joules() - before if meter else None


def main(job: str) -> int:
    """Do a job, which is JSON; the exit code."""
    try:
        for event in run(read_job(job)):
            print(event.model_dump_json(), flush=True)
    except EdgepackError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(Failed(message=f"{error.message}{hint}").model_dump_json(), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
