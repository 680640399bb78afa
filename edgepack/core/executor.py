"""Who does the work that stages hand out: many items alike, each done by itself.

An item is plain data (names, numbers, paths; a model is pickled as the place that it is opened
from), and its result a file that appears whole. So it does not matter where, in which order or how
often an item is done: threads here, processes or a cluster elsewhere come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Protocol, TypeVar

import torch

AT_ONCE = 4
"""Items worked on side by side, where there are so many cores."""

Item = TypeVar("Item")


class Executor(Protocol):
    """Does work on items."""

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """Do `work`, a function at the top of a module, on all items; each is yielded in order,
        before it is waited for."""
        ...


class Threads:
    """Threads of this process, each on one core: results do not depend on the number of cores, and
    a weight whose rows wait for one another keeps none idle."""

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """What is not begun when an error (or Ctrl-C) comes is left."""
        cores = torch.get_num_threads()
        pool = ThreadPoolExecutor(min(AT_ONCE, cores), initializer=one_core)
        try:
            yield from _in_order(pool, torch.no_grad()(work), items)
        finally:
            torch.set_num_threads(cores)


class Processes:
    """Processes of this machine, to show that items are plain data; a build has no use for them."""

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def map(self, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
        """New processes, in which nothing is known but what an item says."""
        pool = ProcessPoolExecutor(self.count, get_context("spawn"), initializer=one_core)
        yield from _in_order(pool, partial(_without_gradients, work), items)


def one_core() -> None:
    """Let torch compute on one core in this thread or process."""
    torch.set_num_threads(1)


def _without_gradients(work: Callable[[Item], None], item: Item) -> None:
    with torch.no_grad():
        work(item)


def _in_order(pool: Pool, work: Callable[[Item], None], items: Sequence[Item]) -> Iterator[Item]:
    try:
        running = [(item, pool.submit(work, item)) for item in items]
        for item, future in running:
            yield item
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
