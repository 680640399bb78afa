"""How fast ggml multiplies on this machine, type by type, in the layout that llama.cpp would keep a
weight in."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.bench.protocol import Multiplied, Multiply
from edgepack.core import plugins
from edgepack.errors import EdgepackError
from edgepack.runtimes._llama_library import extra_buffers_are_safe
from edgepack.runtimes.ggml import part, stock_quantize

PLAIN = {"f32": 0, "f16": 1}
"""Numbers in ``enum ggml_type`` of types that are not quantized."""
DISTINCT = 8
"""Rows that are quantized; the others repeat them. Kernels take the same time for all values."""
MICRO_BATCH = 512
"""Columns for which llama.cpp asks whether a layout has kernels."""
EXTRA = b"ggml_backend_dev_get_extra_bufts"

_ptr, _int, _long, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


class _Params(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", _size), ("mem_buffer", _ptr), ("no_alloc", ctypes.c_bool))


class _Tensor(ctypes.Structure):
    """The beginning of ``struct ggml_tensor``."""

    _fields_ = (("type", _int), ("buffer", _ptr))


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "init": (_ptr, [_Params]),
    "free": (None, [_ptr]),
    "tensor_overhead": (_size, []),
    "graph_overhead_custom": (_size, [_size, ctypes.c_bool]),
    "new_tensor_2d": (_ptr, [_ptr, _int, _long, _long]),
    "mul_mat": (_ptr, [_ptr, _ptr, _ptr]),
    "new_graph_custom": (_ptr, [_ptr, _size, ctypes.c_bool]),
    "build_forward_expand": (None, [_ptr, _ptr]),
    "nbytes": (_size, [_ptr]),
    "backend_free": (None, [_ptr]),
    "backend_get_device": (_ptr, [_ptr]),
    "backend_dev_backend_reg": (_ptr, [_ptr]),
    "backend_reg_get_proc_address": (_ptr, [_ptr, ctypes.c_char_p]),
    "backend_dev_supports_op": (ctypes.c_bool, [_ptr, _ptr]),
    "backend_get_default_buffer_type": (_ptr, [_ptr]),
    "backend_buft_alloc_buffer": (_ptr, [_ptr, _size]),
    "backend_buffer_free": (None, [_ptr]),
    "backend_alloc_ctx_tensors_from_buft": (_ptr, [_ptr, _ptr]),
    "backend_tensor_set": (None, [_ptr, _ptr, _size, _size]),
    "backend_graph_compute": (_int, [_ptr, _ptr]),
    "backend_cpu_init": (_ptr, []),
    "backend_cpu_set_n_threads": (None, [_ptr, _int]),
}
"""Name, without ``ggml_`` → types of result and arguments of the C functions in use."""


@cache
def _library() -> Any:
    """The C functions, from libggml-base and libggml-cpu."""
    found = SimpleNamespace()
    for name, (result, arguments) in SIGNATURES.items():
        library = part("cpu" if name.startswith("backend_cpu_") else "base")
        function = getattr(library, f"ggml_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(found, name, function)
    return found


def multiply(job: Multiply) -> Iterator[Multiplied]:
    """Time a graph of products, of as many different W as memory has to be read for."""
    for kind in job.types:
        data = _weight(kind, job.rows, job.columns)
        for batch in job.batches:
            count = max(1, job.bytes // data.nbytes) if batch == 1 else 1
            with ExitStack() as stack:
                products = _Products(stack, job.threads, kind, data, (job.columns, batch, count))
                products.seconds()  # the first one allocates
                for _ in range(job.rounds):
                    seconds = products.seconds()
                    yield Multiplied(type=kind, batch=batch, seconds=seconds, bytes=data.nbytes)


def _weight(kind: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Bytes ``[rows, bytes of a row]`` of a random W."""
    W = np.random.default_rng(0).standard_normal((DISTINCT, columns), np.float32)
    if kind in PLAIN:
        found = W.astype(np.float32 if kind == "f32" else np.float16).view(np.uint8)
    else:
        found = stock_quantize(kind, W, np.ones(columns, np.float32))
    return np.tile(found, (rows // DISTINCT, 1))


class _Products:
    """A graph of `count` products W·X with different W; what it allocates is freed by `stack`."""

    def __init__(
        self,
        stack: ExitStack,
        threads: int,
        kind: str,
        data: NDArray[np.uint8],
        shape: tuple[int, int, int],
    ) -> None:
        columns, batch, self._count = shape
        ggml = self._ggml = _library()
        self._stack, self._kind = stack, kind
        self._cpu = self._own(ggml.backend_cpu_init(), ggml.backend_free)
        ggml.backend_cpu_set_n_threads(self._cpu, threads)
        self._type = PLAIN[kind] if kind in PLAIN else plugins.find("formats", kind).ggml_type
        weights, others = self._context(self._count), self._context(2 * self._count + 8)
        self._graph = ggml.new_graph_custom(others, self._count + 8, False)
        X = ggml.new_tensor_2d(others, PLAIN["f32"], columns, batch)
        Ws = [
            ggml.new_tensor_2d(weights, self._type, columns, len(data)) for _ in range(self._count)
        ]
        for W in Ws:
            ggml.build_forward_expand(self._graph, ggml.mul_mat(others, W, X))
        self._allocate(weights, self._layout(columns, len(data)))
        self._allocate(others, ggml.backend_get_default_buffer_type(self._cpu))
        for W in Ws:
            self._set(W, data)
        self._set(X, np.ones((batch, columns), np.float32))

    def seconds(self) -> float:
        """Of one product."""
        start = time.perf_counter()
        if self._ggml.backend_graph_compute(self._cpu, self._graph) != 0:
            raise EdgepackError(f"{self._kind}: ggml cannot multiply it here")
        return (time.perf_counter() - start) / self._count

    def _own(self, made: Any, free: Any) -> Any:
        """What a C function made, to be freed."""
        if not made:
            raise EdgepackError(f"{self._kind}: no memory for the product's matrices")
        self._stack.callback(free, made)
        return made

    def _context(self, tensors: int) -> Any:
        """Room for descriptions of tensors, not for their values."""
        ggml = self._ggml
        size = ggml.tensor_overhead() * tensors + ggml.graph_overhead_custom(tensors, False)
        return self._own(ggml.init(_Params(size, None, True)), ggml.free)

    def _allocate(self, context: Any, layout: Any) -> None:
        buffer = self._ggml.backend_alloc_ctx_tensors_from_buft(context, layout)
        self._own(buffer, self._ggml.backend_buffer_free)

    def _set(self, tensor: Any, values: NDArray[Any]) -> None:
        if self._ggml.nbytes(tensor) != values.nbytes:
            raise EdgepackError("ggml's types are not those of this version of edgepack")
        self._ggml.backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def _layout(self, columns: int, rows: int) -> Any:
        """The layout that llama.cpp would keep W in: one for this CPU, if there is one for its
        type and that may be used."""
        ggml = self._ggml
        device = ggml.backend_get_device(self._cpu)
        address = ggml.backend_reg_get_proc_address(ggml.backend_dev_backend_reg(device), EXTRA)
        if address and extra_buffers_are_safe():
            extra = ctypes.CFUNCTYPE(ctypes.POINTER(_ptr), _ptr)(address)(device)
            for layout in _until_null(extra):
                none = self._own(
                    ggml.backend_buft_alloc_buffer(layout, 0), ggml.backend_buffer_free
                )
                context = self._context(8)
                W = ggml.new_tensor_2d(context, self._type, columns, rows)
                X = ggml.new_tensor_2d(context, PLAIN["f32"], columns, MICRO_BATCH)
                _Tensor.from_address(W).buffer = none
                if ggml.backend_dev_supports_op(device, ggml.mul_mat(context, W, X)):
                    return layout
        return ggml.backend_get_default_buffer_type(self._cpu)


def _until_null(array: Any) -> Iterator[Any]:
    """The entries of a C array that ends with a null pointer."""
    index = 0
    while array and array[index]:
        yield array[index]
        index += 1
