"""What llama-quantize makes of the same model: every stock GGUF type, with an imatrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack import formats
from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.export.gguf import write_model
from edgepack.model.sliced import Sliced
from edgepack.planning.formats import tensor_bytes
from edgepack.runtimes.ggml import requires_imatrix, stock_quantize

Types = dict[str, str]
"""Matrix → its type."""

FALLBACK = {
    **dict.fromkeys(("q2_k", "q3_k", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}
"""What llama-quantize takes for a weight whose width a type does not fit (llama-quant.cpp)."""


def every(model: Checkpoint, chosen: Mapping[str, WeightFormat]) -> Iterator[tuple[str, Types]]:
    """Label and types of each of stock's files."""
    specs = [model.specs[name] for name in chosen]
    blocks = [spec for spec in specs if spec.block is not None]
    outside = [spec for spec in specs if spec.block is None]
    default = "q6_k" if _fits("q6_k", outside) else "q8_0"
    for name in formats.stock():
        fitting = [spec for spec in blocks if _fits(name, [spec])]
        other = name if len(fitting) == len(blocks) else FALLBACK.get(name)
        if name == "f16" or not fitting or other is None:
            continue
        body = {spec.name: name if spec in fitting else other for spec in blocks}
        label = f"stock {name} + imatrix" if other == name else f"stock {name} or {other} + imatrix"
        smaller = formats.get(other).bits_per_weight < formats.get(default).bits_per_weight
        small = smaller and _fits(other, outside)
        for taken in (default, other) if small else (default,):
            types = body | {spec.name: taken for spec in outside}
            yield f"{label}, embeddings {taken}", types


def nearest(model: Checkpoint, chosen: Mapping[str, WeightFormat]) -> dict[str, Types]:
    """Label → types of the files to compare with: in the very types of ours, and in the uniform
    type whose file comes nearest in size (all of them where sizes tie). Outside the blocks stock
    gets our types; inside, only types that fit the model's widths."""
    specs = [model.specs[name] for name in chosen]
    same = {name: fmt.Q for name, fmt in chosen.items()}
    blocks = [spec for spec in specs if spec.block is not None]
    uniform = {
        name: {s.name: same[s.name] if s.block is None else name for s in specs}
        for name in formats.stock()
        if name != "f16" and _fits(name, blocks)
    }
    sizes = {
        name: sum(formats.get(types[s.name]).nbytes(s.shape) for s in specs)
        for name, types in uniform.items()
    }
    ours = tensor_bytes(model, chosen)
    distance = min((abs(size - ours) for size in sizes.values()), default=0)
    found = {name: uniform[name] for name, size in sizes.items() if abs(size - ours) == distance}
    if same not in found.values():
        found |= {name: types for name, types in uniform.items() if types == same}
    of = " of the slice" if isinstance(model.counted, Sliced) else ""
    labelled = {f"stock {name} + imatrix{of}": types for name, types in found.items()}
    if same not in found.values():
        labelled[f"stock, same types + imatrix{of}"] = same
    return labelled


def _fits(name: str, specs: list[WeightSpec]) -> bool:
    return all(formats.get(name).fits(spec.shape[1]) for spec in specs)


def write(
    model: Checkpoint, imatrix: Callable[[str], Tensor], types: Mapping[str, str], path: Path
) -> int:
    """The model as llama-quantize makes it in those types: with the `imatrix` of each weight in the
    blocks, without one for embeddings and head."""

    def load(name: str) -> Tensor:
        return _stock_bytes(model, name, types[name], imatrix(name))

    return write_model(path, model, types, load)


def _stock_bytes(model: Checkpoint, name: str, fmt: str, imatrix: Tensor) -> Tensor:
    """One matrix as llama-quantize stores it. Outside the blocks it uses no imatrix; for types that
    demand one, all columns are given the same weight there."""
    spec = model.specs[name]
    importance: NDArray[np.float32] | None = imatrix.float().numpy()
    if spec.block is None:
        importance = np.ones(spec.shape[1], np.float32) if requires_imatrix(fmt) else None
    W = model.tensor(name).numpy()
    return torch.from_numpy(stock_quantize(fmt, W, importance))
