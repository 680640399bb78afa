"""The limits of a device, measured by its worker: reading memory, and products type by type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from edgepack.bench.protocol import Event, Multiplied, Multiply, Read, ReadMemory
from edgepack.bench.workers import Worker
from edgepack.core.progress import Progress, Steps
from edgepack.device_profile.limits import PLAIN, Ceilings, Product, ReadSpeed
from edgepack.formats import stock


def measure_limits(
    worker: Worker, threads: Sequence[int], types: Sequence[str], *, every: bool
) -> Steps[Ceilings]:
    """Limits with each number of threads. Products are timed of the `types` that are ggml's and of
    `PLAIN`, or of every type; of none where no type is ggml's."""
    yield Progress("limits", 0, 1 + len(threads), "reading memory")
    speeds: dict[int, list[float]] = defaultdict(list)
    for event in worker.do(ReadMemory(threads=tuple(threads))):
        if isinstance(event, Read):
            speeds[event.threads].append(event.bytes_per_second)
    products: list[Product] = []
    wanted = _types(types, every=every)
    for done, count in enumerate(threads if wanted else (), 1):
        yield Progress("limits", done, 1 + len(threads), f"products, {count} threads")
        job = Multiply(threads=count, types=wanted)
        products += _products(job, worker.do(job))
    memory = [ReadSpeed(threads=t, bytes_per_second=found) for t, found in speeds.items()]
    return Ceilings(memory=memory, products=products)


def _types(types: Sequence[str], *, every: bool) -> tuple[str, ...]:
    """Types whose products are to be timed."""
    known = {*stock(), *PLAIN}
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
