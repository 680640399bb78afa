"""Limits of this machine, measured: how fast it reads memory, and how fast ggml multiplies.

A decoded token needs every weight once, so that it cannot be faster than reading them; a prompt
needs the same products for many columns at once, so that it is limited by arithmetic. (Williams et
al. 2009, "Roofline"; McCalpin, STREAM, of which this is the sum without a store.)
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgepack.bench.protocol import Multiplied, Multiply, Read, ReadMemory
from edgepack.core import plugins
from edgepack.errors import EdgepackError
from edgepack.runtimes.ggml import _ptr, part, stock_quantize

PLAIN = {"f32": 0, "f16": 1}
"""Numbers in ``enum ggml_type`` of types that are not quantized."""
DISTINCT = 8
"""Rows that are quantized; the others repeat them. Kernels take the same time for all values."""
ARENA = 1 << 20
"""Bytes for the descriptions of tensors and the graph."""


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


class _Params(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


SIGNATURES = {
    "ggml_init": (_ptr, [_Params]),
    "ggml_free": (None, [_ptr]),
    "ggml_new_tensor_2d": (_ptr, [_ptr, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (_ptr, [_ptr, _ptr, _ptr]),
    "ggml_new_graph": (_ptr, [_ptr]),
    "ggml_build_forward_expand": (None, [_ptr, _ptr]),
    "ggml_get_data": (_ptr, [_ptr]),
    "ggml_nbytes": (ctypes.c_size_t, [_ptr]),
    "ggml_graph_compute_with_ctx": (ctypes.c_int, [_ptr, _ptr, ctypes.c_int]),
    "ggml_cpu_init": (None, []),
}


@cache
def _functions() -> dict[str, Any]:
    """The C functions in use, from libggml-base and libggml-cpu."""
    found = {}
    for name, (result, arguments) in SIGNATURES.items():
        of_cpu = name in ("ggml_graph_compute_with_ctx", "ggml_cpu_init")
        function = getattr(part("cpu" if of_cpu else "base"), name)
        function.restype, function.argtypes = result, arguments
        found[name.removeprefix("ggml_")] = function
    found["cpu_init"]()
    return found


def multiply(job: Multiply) -> Iterator[Multiplied]:
    """Time a graph of products, of as many different W as memory has to be read for."""
    for kind in job.types:
        data = _weight(kind, job.rows, job.columns)
        for batch in job.batches:
            count = max(1, job.bytes // data.nbytes) if batch == 1 else 1
            for seconds in _products(kind, data, job, batch, count):
                yield Multiplied(type=kind, batch=batch, seconds=seconds, bytes=data.nbytes)


def _weight(kind: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Bytes ``[rows, bytes of a row]`` of a random W."""
    W = np.random.default_rng(0).standard_normal((DISTINCT, columns), np.float32)
    if kind in PLAIN:
        found = W.astype(np.float32 if kind == "f32" else np.float16).view(np.uint8)
    else:
        found = stock_quantize(kind, W, np.ones(columns, np.float32))
    return np.tile(found, (rows // DISTINCT, 1))


def _products(
    kind: str, data: NDArray[np.uint8], job: Multiply, batch: int, count: int
) -> Iterator[float]:
    """Seconds of one product, round by round."""
    ggml = _functions()
    ggml_type = PLAIN[kind] if kind in PLAIN else plugins.find("formats", kind).ggml_type
    # X, ggml's copies of it (one more each time), and W·X
    wide = 4 * batch * ((job.rounds + 2) * job.columns + count * job.rows)
    context = ggml["init"](_Params(count * (data.nbytes + 1024) + wide + 8 * ARENA, None, False))
    if not context:
        raise EdgepackError(f"{kind}: no memory for {count} matrices of {data.nbytes} bytes")
    try:
        X = ggml["new_tensor_2d"](context, PLAIN["f32"], job.columns, batch)
        _copy(X, np.ones((batch, job.columns), np.float32))
        graph = ggml["new_graph"](context)
        for _ in range(count):
            W = ggml["new_tensor_2d"](context, ggml_type, job.columns, len(data))
            _copy(W, data)
            ggml["build_forward_expand"](graph, ggml["mul_mat"](context, W, X))
        for turn in range(job.rounds + 1):
            start = time.perf_counter()
            done = ggml["graph_compute_with_ctx"](context, graph, job.threads)
            seconds = (time.perf_counter() - start) / count
            if done != 0:
                raise EdgepackError(f"{kind}: ggml cannot multiply it here")
            if turn:  # the first one allocates
                yield seconds
    finally:
        ggml["free"](context)


def _copy(tensor: Any, values: NDArray[Any]) -> None:
    ggml = _functions()
    if ggml["nbytes"](tensor) != values.nbytes:
        raise EdgepackError("ggml's types are not those of this version of edgepack")
    ctypes.memmove(ggml["get_data"](tensor), values.ctypes.data, values.nbytes)
