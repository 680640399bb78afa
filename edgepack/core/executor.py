"""Weights of a block at the same time, each on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

AT_ONCE = 4
"""Weights worked on side by side, where there are so many cores."""

T = TypeVar("T")


def side_by_side(work: Callable[[T], None], items: Sequence[T]) -> Iterator[T]:
    """Do `work` on all items, yielding each in order before it is waited for.

    On one core each: then results do not depend on the number of cores, and a weight whose rows
    wait for one another keeps none idle. What is not begun when an error (or Ctrl-C) comes is left.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(AT_ONCE, cores), initializer=partial(torch.set_num_threads, 1))
    try:
        running = [(item, pool.submit(torch.no_grad()(work), item)) for item in items]
        for item, future in running:
            yield item
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
