"""How fast this machine reads memory: the limit of decoding.

A decoded token needs every weight once, so that it cannot be faster than reading them. (McCalpin's
STREAM, of which this is the sum without a store.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgepack.bench.protocol import Read, ReadMemory


@njit(nogil=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _sum(values: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for i in range(len(values)):  # over the values themselves it would not be vectorized
        total += values[i]
    return total


def read_memory(job: ReadMemory) -> Iterator[Read]:
    """Sum a block of float32 in threads, each its own part."""
    values = np.ones(job.bytes // 4, np.float32)
    _sum(values[:1])  # compiles
    for threads in job.threads:
        parts = np.array_split(values, threads)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_sum, parts))
            for _ in range(job.rounds):
                start = time.perf_counter()
                list(pool.map(_sum, parts))
                seconds = time.perf_counter() - start
                yield Read(threads=threads, bytes_per_second=values.nbytes / seconds)
