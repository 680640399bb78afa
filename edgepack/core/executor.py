"""Who does the work that stages hand out: many items alike, each done by itself.

An item is plain data (names, numbers, paths; a model is pickled as the place that it is opened
from), and its result a file that appears whole. So it does not matter where, in which order or how
often an item is done: threads here, processes or a cluster elsewhere come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Condition, Lock
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from edgepack.core.hardware import anonymous_memory, working_memory

AT_ONCE = 4
"""Items worked on side by side, where there are so many cores."""

Item = TypeVar("Item")


class Executor(Protocol):
    """Does work on items."""

    in_process: bool
    """Whether it does so in this process: what items have in common need not go through files."""

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """Do `work`, a function at the top of a module, on all items; each is yielded in order,
        before it is waited for."""
        ...


@runtime_checkable
class Spread(Executor, Protocol):
    """An executor on several machines. What the memory of one machine bounds is worth handing to
    it, too; its items say what they need there (`core.travel`)."""

    def facts(self) -> dict[str, Any]:
        """The machines and what was sent, for the manifest; nothing that names a machine."""
        ...


def needs(item: object) -> int:
    """Bytes of memory that the work on an item takes, as far as the item says (`memory`)."""
    return int(getattr(item, "memory", 0))


class Admission:
    """Lets work begin while what all that is running needs fits into `room` bytes. One piece of
    work is always let in, so that a machine that is too small by a little still ends its job."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
        self._next, self._freed = Lock(), Condition()

    @contextmanager
    def let_in(self, nbytes: int) -> Iterator[None]:
        """Wait until `nbytes` fit, and take them while the body runs. Whoever waits is next: small
        pieces of work do not keep a large one waiting."""
        with self._next, self._freed:
            self._freed.wait_for(lambda: not self.used or self.used + nbytes <= self.room)
            self.used += nbytes
        try:
            yield
        finally:
            with self._freed:
                self.used -= nbytes
                self._freed.notify_all()


def most_at_once(sizes: Iterable[int], room: int, cores: int) -> int:
    """Most bytes that items of these needs take side by side on so many cores, in `room` bytes."""
    largest = sorted(sizes, reverse=True)[: min(AT_ONCE, cores)]
    total = 0
    for size in largest:
        if not total or total + size <= room:
            total += size
    return total


class Threads:
    """Threads of this process, each on one core: results do not depend on the number of cores, and
    a weight whose rows wait for one another keeps none idle. Items that say what memory they need
    wait until there is so much."""

    in_process = True

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """What is not begun when an error (or Ctrl-C) comes is left."""
        cores = torch.get_num_threads()
        pool = ThreadPoolExecutor(
            min(AT_ONCE, cores), initializer=partial(torch.set_num_threads, 1)
        )
        run = _Run(torch.no_grad()(work), Admission(working_memory() - anonymous_memory()))
        try:
            running = [(item, pool.submit(run, item)) for item in items]
            for item, future in running:
                yield item
                future.result()
        finally:
            run.ended = True
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)


class _Run:
    """Work on items, as far as memory admits them."""

    def __init__(self, work: Callable[..., None], admission: Admission) -> None:
        self.work, self.admission, self.ended = work, admission, False

    def __call__(self, item: object) -> None:
        with self.admission.let_in(needs(item)):
            if not self.ended:
                self.work(item)
