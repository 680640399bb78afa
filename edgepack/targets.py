"""The files that runtimes read, in the output folder of a target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.decompose.stage import load_weight
from edgepack.export.gguf import FactorSpec, write_factors, write_model
from edgepack.export.modelfile import modelfile
from edgepack.export.peft import write_adapter
from edgepack.planning import Plan
from edgepack.weights import FactoredWeight


def write_gguf(
    made: Plan,
    weights: Path,
    about: Mapping[str, Mapping[str, Any]],
    norms: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """base.gguf, the adapter twice where there are factors, and a Modelfile. `weights` is the
    folder of decomposed weights, `about` what they say of themselves, `norms` those trained."""

    def load(name: str) -> FactoredWeight:
        return load_weight(weights, name)[0]

    formats = {name: a["formats"]["Q"] for name, a in about.items()}
    ranked = {
        name: FactorSpec(a["rank"], a["formats"]["L"], a["formats"]["R"])
        for name, a in about.items()
        if a["rank"]
    }
    write_model(folder / "base.gguf", made.checkpoint, formats, lambda name: load(name).Q, norms)
    if ranked:
        write_factors(folder / "factors.gguf", made.checkpoint, ranked, load)
        write_adapter(folder / "adapter", ranked, load, base=made.recipe.model)
    factors = "factors.gguf" if ranked else None
    (folder / "Modelfile").write_text(modelfile(factors=factors), encoding="utf-8")
