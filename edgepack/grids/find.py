"""Which weights already lie on a format's grid: looked for once, a weight at a time.

Models trained for a type (QAT), files that somebody dequantized and unpacked 1- and 2-bit models
hold scale·code as floats. Rounding them again would move them to another grid; taking the codes
that they already have costs no error at all (`formats._exact`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepack import formats
from edgepack.checkpoint.base import Checkpoint
from edgepack.core.progress import Progress, Steps
from edgepack.core.weights import WeightSpec
from edgepack.errors import while_doing
from edgepack.formats._exact import DTYPES, holds
from edgepack.planning.formats import UNQUANTIZED

STAGE = "grids"


def matrices(checkpoint: Checkpoint) -> Iterator[WeightSpec]:
    """The weights that can be stored in a format."""
    for spec in checkpoint.specs.values():
        if len(spec.shape) == 2 and spec.role not in UNQUANTIZED:
            yield spec


def find_grids(checkpoint: Checkpoint, types: Sequence[str]) -> Steps[dict[str, str]]:
    """Weight → the first of `types` on whose grid it lies; weights on none are left out. Of a
    source in blocks it is the type that it is stored in, if that is one of them.

    Larger types may hold a weight too (q5_0 has all of q4_0's values), but never better.
    """
    specs = list(matrices(checkpoint))
    total, done = float(sum(spec.numel for spec in specs)), 0
    found: dict[str, str] = {}
    for spec in specs:
        yield Progress(STAGE, done, total, f"is {spec.name.removesuffix('.weight')} on a grid")
        with while_doing(f"looking for the grid of {spec.name}"):
            grid = _grid(checkpoint, spec, types)
        if grid is not None:
            found[spec.name] = grid
        done += spec.numel
    yield Progress(STAGE, done, total)
    return found


def _grid(checkpoint: Checkpoint, spec: WeightSpec, types: Sequence[str]) -> str | None:
    stored = spec.dtype.lower()
    if spec.dtype not in DTYPES:
        return stored if stored in types else None
    W, dtype = checkpoint.tensor(spec.name), DTYPES[spec.dtype]
    return next((name for name in types if holds(W, dtype, formats.get(name))), None)
