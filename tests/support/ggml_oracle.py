"""llama.cpp's own quantizers and dequantizers, through ctypes to libggml-base."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def available() -> bool:
    return find_spec("llama_cpp") is not None


@cache
def _library() -> ctypes.CDLL:
    # Found without importing llama_cpp, which would load all of llama.cpp.
    folder = Path(find_spec("llama_cpp").origin).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


def quantize(ggml_type: int, x: Tensor, row_bytes: int, importance: Tensor | None = None) -> Tensor:
    """Stock bytes ``[out, row_bytes]`` of x ``[out, in]``, importance ``[in]`` as the imatrix, ones
    where it is not given and ggml insists."""
    if importance is None and _library().ggml_quantize_requires_imatrix(int(ggml_type)):
        importance = torch.ones(x.shape[1])
    source = np.ascontiguousarray(x.numpy(), dtype=np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance.numpy(), np.float32)
    out = np.zeros((len(source), row_bytes), dtype=np.uint8)
    written = _library().ggml_quantize_chunk(
        int(ggml_type),
        source.ctypes.data,
        out.ctypes.data,
        0,
        *source.shape,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.nbytes
    return torch.from_numpy(out)


def dequantize(name: str, data: Tensor, columns: int) -> Tensor:
    """float32 ``[out, columns]`` by libggml's ``dequantize_row_<name>``."""
    source = np.ascontiguousarray(data.numpy())
    out = np.empty((len(source), columns), dtype=np.float32)
    run = getattr(_library(), f"dequantize_row_{name}")
    run.restype = None
    run(
        ctypes.c_void_p(source.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(out.size),
    )
    return torch.from_numpy(out)
