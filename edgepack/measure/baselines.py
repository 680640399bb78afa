"""What others' tools make of the same model, to be measured beside ours: every stock GGUF type, and
for ONNX plain rounding on every grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.allocate.budget import LADDER
from edgepack.calibration.moments import weight_hessian
from edgepack.core.progress import Progress, Steps
from edgepack.export.gguf import write_model
from edgepack.planning.formats import UNQUANTIZED, format_of, stock_formats
from edgepack.planning.plan import Plan
from edgepack.runtimes.ggml import requires_imatrix, stock_quantize
from edgepack.runtimes.models import Model

STOCK, PLAIN = "stock + imatrix", "plain rounding"
MAKERS = {"gguf": STOCK, "onnx": PLAIN}
"""Target → whose files stand beside ours."""
EMBEDDINGS = "q8_0"

FALLBACK = {
    **dict.fromkeys(("q2_k", "q3_k", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}
"""What llama-quantize takes for a weight whose width a type does not fit (llama-quant.cpp)."""


def peer_types(made: Plan) -> dict[str, dict[str, str]]:
    """Label and format of every matrix, for each of the peers' files."""
    return dict(stock_types(made) if made.target == "gguf" else plain_types(made))


def stock_types(made: Plan) -> Iterator[tuple[str, dict[str, str]]]:
    """Label and format of every matrix, for each of stock's files."""
    specs = [made.checkpoint.specs[name] for name in made.choices]
    blocks = [spec for spec in specs if spec.block is not None]
    outside = [spec for spec in specs if spec.block is None]
    default = "q6_k" if all(format_of("q6_k").fits(s.shape[1]) for s in outside) else "q8_0"
    for name in stock_formats():
        fitting = [spec for spec in blocks if format_of(name).fits(spec.shape[1])]
        other = name if len(fitting) == len(blocks) else FALLBACK.get(name)
        if name == "f16" or not fitting or other is None:
            continue
        body = {spec.name: name if spec in fitting else other for spec in blocks}
        label = f"stock {name} + imatrix" if other == name else f"stock {name} or {other} + imatrix"
        smaller = format_of(other).bits_per_weight < format_of(default).bits_per_weight
        small = smaller and all(format_of(other).fits(s.shape[1]) for s in outside)
        for chosen in (default, other) if small else (default,):
            formats = body | {spec.name: chosen for spec in outside}
            yield f"{label}, embeddings {chosen}", formats


def plain_types(made: Plan) -> Iterator[tuple[str, dict[str, str]]]:
    """The same for ONNX, where plain rounding is what other exporters do."""
    specs = [made.checkpoint.specs[name] for name in made.choices]
    for name in LADDER["onnx"]:
        form = format_of(name)
        if not all(form.fits(spec.shape[1]) for spec in specs if spec.block is not None):
            continue
        smaller = form.bits_per_weight < format_of(EMBEDDINGS).bits_per_weight
        small = smaller and all(form.fits(spec.shape[1]) for spec in specs)
        for outside in (EMBEDDINGS, name) if small else (EMBEDDINGS,):
            formats = {s.name: outside if s.block is None else name for s in specs}
            yield f"plain {name}, embeddings {outside}", unquantized(made, formats)


def unquantized(made: Plan, formats: Mapping[str, str]) -> dict[str, str]:
    """The formats, but for matrices that have to stay as they are."""
    specs = made.checkpoint.specs
    kept = {n: c.format for n, c in made.choices.items() if specs[n].role in UNQUANTIZED}
    return {**formats, **kept}


def write_peers(
    made: Plan, every: Mapping[str, Mapping[str, str]], folder: Path
) -> Steps[list[Model]]:
    """Write the peers' files, given as label → format of every matrix."""
    models: list[Model] = []
    for number, (label, formats) in enumerate(every.items()):
        yield Progress("stock", number, len(every), label)
        if made.target == "onnx":
            place = folder / f"plain-{number}"
            path = yield from write_plain_onnx(made, formats, place, "stock")
        else:
            path = folder / f"stock-{number}.gguf"
            write_stock(made, partial(_imatrix, made), formats, path)
        models.append(Model(label, path))
    return models


def _imatrix(made: Plan, name: str) -> Tensor:
    assert made.calibrate is not None
    tied = made.checkpoint.dimensions.tie_word_embeddings
    return weight_hessian(made.calibrate.folder, made.checkpoint.specs[name], tied=tied).imatrix


def peers(made: Plan) -> dict[str, dict[str, str]]:
    """Label → format of every matrix, for each stock file to compare with. Outside the blocks
    stock gets our formats; inside, only types that fit the model's widths."""
    specs = [made.checkpoint.specs[name] for name in made.choices]
    same = {name: choice.format for name, choice in made.choices.items()}
    uniform = {
        name: {s.name: same[s.name] if s.block is None else name for s in specs}
        for name in stock_formats()
        if name != "f16"
        and all(format_of(name).fits(s.shape[1]) for s in specs if s.block is not None)
    }
    sizes = {
        name: sum(format_of(formats[s.name]).nbytes(s.shape) for s in specs)
        for name, formats in uniform.items()
    }
    ours = sum(made.bytes_by_part().values())
    nearest = min((abs(size - ours) for size in sizes.values()), default=0)
    found = {name: uniform[name] for name, size in sizes.items() if abs(size - ours) == nearest}
    if same not in found.values():
        found |= {name: formats for name, formats in uniform.items() if formats == same}
    of = " of the slice" if made.slice else ""
    labelled = {f"stock {name} + imatrix{of}": formats for name, formats in found.items()}
    if same not in found.values():
        labelled[f"stock, same types + imatrix{of}"] = same
    return labelled


def write_plain_onnx(
    made: Plan, formats: Mapping[str, str], folder: Path, stage: str
) -> Steps[Path]:
    """The model as a graph in those types, rounded to nearest, in a new folder; the graph."""
    from edgepack.export import onnx

    folder.mkdir()
    options = onnx.graph_options(made.checkpoint, made.recipe.export.onnx)
    return (yield from onnx.write_plain(folder, made.checkpoint, formats, options, stage))


def write_stock(
    made: Plan, imatrix: Callable[[str], Tensor], formats: Mapping[str, str], path: Path
) -> int:
    """The model as llama-quantize makes it in those types: with the `imatrix` of each weight in the
    blocks, without one for embeddings and head."""

    def load(name: str) -> Tensor:
        return _stock_bytes(made, name, formats[name], imatrix(name))

    return write_model(path, made.checkpoint, formats, load)


def _stock_bytes(made: Plan, name: str, form: str, imatrix: Tensor) -> Tensor:
    """One matrix as llama-quantize stores it. Outside the blocks it uses no imatrix; for types that
    demand one, all columns are given the same weight there."""
    spec = made.checkpoint.specs[name]
    importance: NDArray[np.float32] | None = imatrix.float().numpy()
    if spec.block is None:
        importance = np.ones(spec.shape[1], np.float32) if requires_imatrix(form) else None
    W = made.checkpoint.tensor(name).numpy()
    return torch.from_numpy(stock_quantize(form, W, importance))
