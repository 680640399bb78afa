"""What a training graph has trained, anywhere, as an adapter of the folder it was made from."""

from __future__ import annotations

from pathlib import Path

from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, Lora
from edgepack.adapters.base import PackedBase
from edgepack.core.adapters import place
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.finetune.graph.folder import read_about
from edgepack.finetune.graph.runner import Adapters, read_factors


def keep(folder: Path, training: Path, factors: Path, name: str) -> Path:
    """Write ``FOLDER/adapters/NAME`` from ``factors.safetensors``, as the page and the runner write
    it, for every runtime of the output folder; its path.

    `training` is the folder of the graph. Refuses a graph of another model, and matrices that are
    not those that it trains.
    """
    base, about = PackedBase.open(folder), read_about(training)
    if about.digest != base.identity.digest:
        raise EdgepackError(
            f"{shorten(str(training), 120)}: is the training graph of another model",
            hint=f"give the folder that it was made from, not {shorten(str(folder), 80)}",
        )
    trained = read_factors(factors)
    wanted = {parameter.weight for parameter in about.matrices()}
    if trained.keys() != wanted:
        raise EdgepackError(
            f"{shorten(str(factors), 120)}: has not the matrices that the graph trains",
            hint="give the file that train.html or the runner wrote with this graph",
        )
    out = place(folder, name)
    if out.exists():
        raise EdgepackError(
            f"{shorten(str(out), 120)}: exists", hint="--name NAME writes elsewhere"
        )
    adapter = Adapter(_added(base, trained, about.mode), base.identity, {"mode": about.mode})
    files.write(out, adapter, base)
    return out


def _added(base: PackedBase, trained: Adapters, mode: str) -> dict[str, Lora]:
    """What training added to the packed model: of L and R themselves it is the difference."""
    found = {}
    for name, (A, B) in trained.items():
        parts = [Lora(A, B)]
        if mode == "factors":
            L, R = (part.dequantize() for part in base.pair(name))
            parts.append(Lora(R, -L))
        found[name] = Lora.joined(parts)
    return found
