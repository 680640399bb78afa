"""Parts of a batch side by side, each on one core.

torch's own threads split a product in ways that may round differently with their number. Here the
parts are fixed, each is computed by one thread, and their results are put together in order: the
bytes are the same on any number of cores, and elementwise work uses them all too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch

AT_ONCE = 8
"""Parts worked on side by side, where there are so many cores: a batch has no more of them."""

Part = TypeVar("Part")
Result = TypeVar("Result")


class Map(Protocol):
    """A function of many parts."""

    def __call__(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        """The results, in order."""
        ...


def in_turn(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """One after the other, in this thread."""
    return [work(part) for part in parts]


def threads() -> int:
    """How many parts are in memory at once."""
    return min(AT_ONCE, torch.get_num_threads())


@contextmanager
def side_by_side() -> Iterator[Map]:
    """While the body runs, torch has one thread in each of ours."""
    cores = torch.get_num_threads()
    if cores == 1:
        yield in_turn
        return
    one = partial(torch.set_num_threads, 1)
    one()
    pool = ThreadPoolExecutor(min(AT_ONCE, cores), initializer=one)

    def run(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        return list(pool.map(torch.no_grad()(work), parts))

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
