"""The files that runtimes read, in the output folder of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_weight
from edgepack.core.weights import FactoredWeight
from edgepack.export.gguf import write_factors, write_model
from edgepack.export.modelfile import modelfile, stops
from edgepack.export.parts import Parts
from edgepack.export.peft import write_adapter
from edgepack.planning.formats import parts_of
from edgepack.planning.plan import Plan

Load = Callable[[str], FactoredWeight]


def write(
    made: Plan,
    weights: Path,
    about: Mapping[str, Mapping[str, Any]],
    norms: Mapping[str, Tensor],
    folder: Path,
) -> Steps[None]:
    """The model in the files of the plan's target. `weights` is the folder of decomposed weights,
    `about` what they say of themselves, `norms` those trained."""

    def load(name: str) -> FactoredWeight:
        return load_weight(weights, name)[0]

    parts = {
        name: Parts(a["formats"]["Q"], a["rank"], a["formats"].get("L"), a["formats"].get("R"))
        for name, a in about.items()
    }
    ranked = {name: known for name, known in parts.items() if known.rank}
    if made.target == "onnx":
        yield from _write_onnx(made, parts, load, norms, folder)
    else:
        yield Progress("export", 0, 1, "base.gguf")
        _write_gguf(made, parts, load, norms, folder)
    if ranked:
        write_adapter(
            folder / "adapter", ranked, load, base=str(made.checkpoint.original.source["model"])
        )


def requires(made: Plan) -> str | None:
    """What the files need of their runtime, where that is not any version that edgepack runs."""
    if made.target != "onnx":
        return None
    from edgepack.export import onnx
    from edgepack.export.requirements import needed

    options = onnx.graph_options(made.checkpoint, made.recipe.export.onnx)
    parts = parts_of(made.choices)
    (major, minor), what = needed(onnx.unread(made.checkpoint, parts, options), half=options.half)
    return f"ONNX Runtime {major}.{minor} or later (for {what})"


def _write_gguf(
    made: Plan,
    parts: Mapping[str, Parts],
    load: Load,
    norms: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """base.gguf, the factors as an adapter for it, and a Modelfile."""
    formats = {name: known.Q for name, known in parts.items()}
    ranked = {name: known for name, known in parts.items() if known.rank}
    write_model(folder / "base.gguf", made.checkpoint, formats, lambda name: load(name).Q, norms)
    if ranked:
        write_factors(folder / "factors.gguf", made.checkpoint, ranked, load)
    factors = "factors.gguf" if ranked else None
    (folder / "Modelfile").write_text(
        modelfile(factors=factors, stops=stops(made.checkpoint)), encoding="utf-8"
    )


def _write_onnx(
    made: Plan,
    parts: Mapping[str, Parts],
    load: Load,
    norms: Mapping[str, Tensor],
    folder: Path,
) -> Steps[Path]:
    from edgepack.export import onnx

    options = onnx.graph_options(made.checkpoint, made.recipe.export.onnx)
    return (yield from onnx.write_folder(folder, made.checkpoint, parts, load, options, norms))
