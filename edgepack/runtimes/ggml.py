"""ggml's quantizers, for the stock file that a compressed one is compared with, and its fast
dequantizers, for training on packed weights."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.core import plugins
from edgepack.errors import EdgepackError, missing_extra

LIBRARY = {"darwin": "libggml-{}.dylib", "win32": "ggml-{}.dll"}
"""Files in llama-cpp-python's ``lib`` folder by platform; on others, ``libggml-base.so``."""

_i64 = ctypes.c_int64
_ptr = ctypes.c_void_p
_to_float = ctypes.CFUNCTYPE(None, _ptr, _ptr, _i64)


class _Traits(ctypes.Structure):
    """The beginning of ``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", _i64),
        ("blck_size_interleave", _i64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _to_float),
    )


SIGNATURES = {
    "ggml_quantize_chunk": (ctypes.c_size_t, [ctypes.c_int, _ptr, _ptr, _i64, _i64, _i64, _ptr]),
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, [ctypes.c_int]),
    "ggml_blck_size": (_i64, [ctypes.c_int]),
    "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, _i64]),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), [ctypes.c_int]),
    "ggml_version": (ctypes.c_char_p, []),
    "ggml_commit": (ctypes.c_char_p, []),
}
"""Name → types of result and arguments of the C functions in use."""


@cache
def library() -> ctypes.CDLL:
    """libggml-base from the llama-cpp-python wheel, with its signatures declared."""
    lib = part("base")
    for function, (result, arguments) in SIGNATURES.items():
        getattr(lib, function).restype = result
        getattr(lib, function).argtypes = arguments
    return lib


def build() -> tuple[str, str] | None:
    """ggml's version, and the commit of the llama.cpp that it was built from; None without it."""
    if find_spec("llama_cpp") is None:
        return None
    lib = library()
    return lib.ggml_version().decode(), lib.ggml_commit().decode()


def part(name: str) -> ctypes.CDLL:
    """A library of ggml's: ``base`` or ``cpu``."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise missing_extra("llama-cpp-python", "llama")
    file = LIBRARY.get(sys.platform, "libggml-{}.so").format(name)
    return ctypes.CDLL(str(Path(spec.origin).parent / "lib" / file))


def requires_imatrix(name: str) -> bool:
    """Whether ggml refuses to quantize to that format without an importance matrix."""
    ggml_type = plugins.find("formats", name).ggml_type
    return bool(library().ggml_quantize_requires_imatrix(ggml_type))


def stock_quantize(
    kind: str | int, W: NDArray[np.float32], imatrix: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """GGUF bytes ``[rows, bytes]`` that llama-quantize would make of W ``[rows, cols]``.

    `kind` is a format's name or a number of ``enum ggml_type``; `imatrix` ``[cols]`` is the mean
    square of each input. Input for which ggml would abort the process is an error here. Every core
    quantizes some of the rows.
    """
    ggml_type = kind if isinstance(kind, int) else plugins.find("formats", kind).ggml_type
    lib = library()
    rows, columns = W.shape
    if columns % lib.ggml_blck_size(ggml_type):
        raise EdgepackError(f"{kind}: rows of {columns} columns are not whole blocks")
    if imatrix is None and lib.ggml_quantize_requires_imatrix(ggml_type):
        raise EdgepackError(f"{kind}: ggml quantizes it only with an importance matrix")
    if imatrix is not None and imatrix.shape != (columns,):
        raise ValueError(f"imatrix {imatrix.shape} for {columns} columns")
    W = np.ascontiguousarray(W, dtype=np.float32)
    if not np.isfinite(W).all():
        raise EdgepackError(f"{kind}: a weight is not finite")
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, dtype=np.float32)
    out = np.empty((rows, lib.ggml_row_size(ggml_type, columns)), np.uint8)
    importance = None if weights is None else weights.ctypes.data

    def quantize(part: NDArray[np.intp]) -> int:
        first = int(part[0]) * columns
        wanted = (ggml_type, W.ctypes.data, out.ctypes.data, first, len(part), columns, importance)
        return int(lib.ggml_quantize_chunk(*wanted))

    parts = np.array_split(np.arange(rows), min(rows, psutil.cpu_count(logical=False) or 1))
    with ThreadPoolExecutor(len(parts)) as pool:  # rows do not depend on one another
        written = sum(pool.map(quantize, parts))
    if written != out.nbytes:
        raise EdgepackError(f"{kind}: ggml wrote {written} bytes instead of {out.nbytes}")
    return out


def dequantize_into(ggml_type: int, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the values of GGUF bytes ``[rows, bytes]`` into `out` ``[rows, columns]``; both are
    contiguous."""
    rows, columns = out.shape
    lib = library()
    if data.shape != (rows, lib.ggml_row_size(ggml_type, columns)):
        raise ValueError(f"{list(data.shape)} bytes for {rows} x {columns} values")
    traits = lib.ggml_get_type_traits(ggml_type).contents
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
