"""Who does the work that stages hand out: many items alike, each done by itself.

An item is plain data (names, numbers, paths; a model is pickled as the place that it is opened
from), and its result a file that appears whole. So it does not matter where, in which order or how
often an item is done: threads here, processes or a cluster elsewhere come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
        pool = ThreadPoolExecutor(
            min(AT_ONCE, cores), initializer=partial(torch.set_num_threads, 1)
        )
        try:
            running = [(item, pool.submit(torch.no_grad()(work), item)) for item in items]
            for item, future in running:
                yield item
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)
