"""`Executor` on the machines of a Ray cluster.

Only this process writes into the cache: the file of an item comes back as bytes and appears here
by rename. So a machine that is lost, or does work a second time, can damage nothing, and
a run that was killed goes on from its files as any other.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgepack.cluster import task
from edgepack.cluster.parcel import Parcel, contents, has_models, pieces
from edgepack.core.disk import atomic
from edgepack.errors import EdgepackError

RETRIES = 5
"""How often an item is done again whose machine or process was lost."""
AHEAD = 2
"""Items that are handed out for every core, so that none waits for the next."""
PATIENCE = 120.0
"""Seconds without any core until a job is given up."""
SOON = 1.0
"""Seconds until what is there is looked at again."""
STORE, FLOAT = 0.4, 4
"""Share of the smallest object store that is used; bytes of a number."""
LEAVING = 5.0
"""Seconds for removing what was sent; what is left goes with the next job there."""
FEW = 3
"""Files that a message names."""

Item = TypeVar("Item")


@dataclass
class Pending:
    """An item that was handed out. `held` are the objects that were made for it."""

    item: Any
    size: int
    held: list[Any] = field(default_factory=list)
    failures: int = 0


@dataclass
class Cluster:
    """Does work on a cluster that `connect` has found; `nodes` says what it consists of."""

    ray: Any
    nodes: list[dict[str, Any]]
    job: str = field(default_factory=lambda: secrets.token_hex(8))
    sends_files: bool = False
    sends_models: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    in_process = False

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """Ray ends what still runs when this process leaves it, after an error or Ctrl-C.
        (``ray.cancel`` would end this process where a result arrives at the same moment: a check
        of Ray 2's TaskManager fails.)"""
        waiting, running = deque(items), dict[Any, Pending]()
        missing = {id(item) for item in items}
        patience = time.monotonic() + PATIENCE
        for item in items:
            yield item
            while id(item) in missing:
                cores = self._cores()
                if cores:
                    patience = time.monotonic() + PATIENCE
                elif time.monotonic() > patience:
                    raise _nobody_left()
                while waiting and len(running) < AHEAD * max(1, cores):
                    size = self._size(waiting[0])
                    if running and size + sum(p.size for p in running.values()) > self.room:
                        break
                    self._hand_out(work, Pending(waiting.popleft(), size), running)
                done, _ = self.ray.wait(list(running), num_returns=1, timeout=SOON)
                for ref in done:
                    pending = running.pop(ref)
                    if self._take(ref, pending):
                        missing.discard(id(pending.item))
                    else:
                        self._hand_out(work, pending, running)

    def facts(self) -> dict[str, Any]:
        """Kinds of machines with their numbers, and how much was done again or sent."""
        kinds = Counter((n["cpu"], n["instructions"], n["cores"]) for n in self.nodes)
        machines = [
            {"cpu": cpu, "instructions": instructions, "cores": cores, "count": count}
            for (cpu, instructions, cores), count in kinds.items()
        ]
        return {"machines": machines, **{name: self.counts[name] for name in COUNTED}}

    def leave(self) -> None:
        """Remove what was sent to the machines that are still there."""
        if not self.counts["files_sent"]:
            return
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        forget = self.ray.remote(num_cpus=0, max_retries=0)(task.forget)
        there = [n["NodeID"] for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        on_each = [forget.options(scheduling_strategy=strategy(n, soft=False)) for n in there]
        asked = [remote.remote(self.job) for remote in on_each]
        self.ray.wait(asked, num_returns=len(asked), timeout=LEAVING)

    @property
    def room(self) -> float:
        """Bytes that may be on their way at once; Ray puts what its stores cannot hold on disk."""
        return float(STORE * min(node["store"] for node in self.nodes))

    def _size(self, item: Any) -> int:
        """Bytes that are sent with an item."""
        size = sum(part.path.stat().st_size for part in item.reads()) if self.sends_files else 0
        if self.sends_models and has_models(item):
            size += sum(FLOAT * item.model.specs[name].numel for name in item.weights())
        return int(size)

    def _cores(self) -> int:
        """Cores of the machines that are there now."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def _hand_out(
        self, work: Callable[[Any], None], pending: Pending, running: dict[Any, Pending]
    ) -> None:
        item, put = pending.item, self.ray.put
        parcel = Parcel.pack(work, item, sending_model=self.sends_models)
        files = weights = None
        if self.sends_files:
            files = [[put(piece) for piece in pieces(seen.part)] for seen in parcel.seen]
        if parcel.with_sent is not None:
            weights = [put(contents(item))]
        pending.held = [files, weights]
        cores, memory = self._needs(item)
        remote = self.remote.options(num_cpus=cores, memory=memory)
        ref = remote.remote(task.own_versions(), self.job, cores, parcel, files, weights)
        running[ref] = pending

    def _needs(self, item: Any) -> tuple[int, int]:
        """Cores and bytes of memory that an item takes, as far as it says and a machine has them:
        one that needs more than the largest machine has gets that one for itself."""
        cores = min([getattr(item, "cores", 1), *(node["cores"] for node in self.nodes)])
        return cores, int(min(getattr(item, "memory", 0), max(n["memory"] for n in self.nodes)))

    @property
    def remote(self) -> Any:
        """The function that runs there."""
        if "_remote" not in self.__dict__:
            self.ray.cloudpickle.register_pickle_by_value(task)
            options = {"max_retries": 0, "scheduling_strategy": "SPREAD"}  # `_take` counts them
            self.__dict__["_remote"] = self.ray.remote(**options)(task.run)
        return self.__dict__["_remote"]

    def _take(self, ref: Any, pending: Pending) -> bool:
        """Take what came back; False if the item has to be handed out again."""
        try:
            about, data = self.ray.get(ref)
        except self._losses as error:
            self.counts["done_again"] += 1
            pending.failures += 1
            if pending.failures > RETRIES:
                raise _lost(pending.item, error) from error
            return False
        if "needs" in about:
            self.sends_files |= "files" in about["needs"]
            self.sends_models |= "model" in about["needs"]
            return False
        raise_what_went_wrong(about, pending.item)
        for path, content in zip(pending.item.writes(), data, strict=True):
            if content is not None:
                with atomic(path) as temporary:
                    temporary.write_bytes(memoryview(content))
        self._count(about, data)
        return True

    def _count(self, about: dict[str, Any], data: Any) -> None:
        self.counts["items"] += 1
        self.counts["bytes_received"] += sum(len(one) for one in data if one is not None)
        self.counts["models_sent"] += about["sent_model"]
        self.counts["files_sent"] += about["sent_files"]

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """Errors of machines and processes, not of the work."""
        names = ("ObjectLostError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")
        return tuple(getattr(self.ray.exceptions, name) for name in names)


def raise_what_went_wrong(about: dict[str, Any], item: Any) -> None:
    """Raise the error that a reply tells of, if any."""
    if "refused" in about:
        raise unlike(about["host"], about["refused"])
    if "another" in about:
        raise _another(about, item.model.original.file_digests())
    if "error" in about:
        raise about["error"]


COUNTED = ("items", "done_again", "models_sent", "files_sent", "bytes_received")


def unlike(host: str, differences: Sequence[str]) -> EdgepackError:
    """The error for a machine on which results would differ."""
    return EdgepackError(
        f"cluster: {host} has {'; '.join(differences)}",
        hint="install the same versions on all machines (constraints.txt), the same edgepack first",
    )


def _another(about: dict[str, Any], mine: Any) -> EdgepackError:
    theirs = about["another"]
    names = sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))
    which = f" ({', '.join(names[:FEW])})" if names else ""
    return EdgepackError(
        f"cluster: {about['host']} has other files of the model than this machine{which}",
        hint="copy the model there again, or remove it there: edgepack then sends what is needed",
    )


def _lost(item: Any, error: Exception) -> EdgepackError:
    return EdgepackError(
        f"cluster: {item.writes()[0].name} was given up, because {RETRIES} machines or processes "
        f"that worked on it were lost ({type(error).__name__})",
        hint="perhaps they have too little memory for it; run it again to go on",
    )


def _nobody_left() -> EdgepackError:
    return EdgepackError(
        f"cluster: no machine has been left for {PATIENCE:.0f} s",
        hint="start some (ray start --address=…) and run it again: what is done is kept",
    )
