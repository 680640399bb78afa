"""Which weights already lie on a format's grid: looked for once, a weight at a time.

Models trained for a type (QAT), files that somebody dequantized and unpacked 1- and 2-bit models
hold scale·code as floats. Rounding them again would move them to another grid; taking the codes
that they already have costs no error at all (`formats._exact`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import formats
from edgepack.checkpoint.base import Checkpoint
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.travel import Part
from edgepack.core.untrusted import read_json
from edgepack.core.weights import WeightSpec
from edgepack.errors import while_doing
from edgepack.formats._exact import DTYPES, holds
from edgepack.planning.formats import UNQUANTIZED

STAGE = "grids"


@dataclass(frozen=True)
class Item:
    """One weight, and the types that it may lie on the grid of; the file says the first."""

    model: Checkpoint
    name: str
    types: tuple[str, ...]
    folder: Path

    @property
    def spec(self) -> WeightSpec:
        """Description of the weight."""
        return self.model.specs[self.name]

    @property
    def memory(self) -> int:
        """Bytes that the work takes: the matrix as stored and as float32, and its codes."""
        return 8 * self.spec.numel

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.folder / f"{self.name}.json"

    def writes(self) -> tuple[Path]:
        """The file."""
        return (self.path,)

    def reads(self) -> tuple[Part, ...]:
        """Nothing but the model."""
        return ()

    def weights(self) -> tuple[str]:
        """The weight itself."""
        return (self.name,)


def matrices(checkpoint: Checkpoint) -> Iterator[WeightSpec]:
    """The weights that can be stored in a format."""
    for spec in checkpoint.specs.values():
        if spec.is_matrix and spec.role not in UNQUANTIZED:
            yield spec


def find_grids(
    checkpoint: Checkpoint, types: Sequence[str], folder: Path, executor: Executor
) -> Steps[None]:
    """Write a file per matrix; files that exist are not written again."""
    items = [Item(checkpoint, spec.name, tuple(types), folder) for spec in matrices(checkpoint)]
    missing = [item for item in items if not item.path.exists()]
    total = float(sum(item.spec.numel for item in items))
    done = total - sum(item.spec.numel for item in missing)
    for item in executor.map(find_grid, missing):
        yield Progress(STAGE, done, total, f"is {item.name.removesuffix('.weight')} on a grid")
        done += item.spec.numel
    yield Progress(STAGE, done, total)


def find_grid(item: Item) -> None:
    """Write the file of one weight: the first type on whose grid it lies, or null. Of a source in
    blocks it is the type that it is stored in, if that is one of them.

    Larger types may hold the weight too (q5_0 has all of q4_0's values), but never better.
    """
    with while_doing(f"looking for the grid of {item.name}"):
        grid = _grid(item.model, item.spec, item.types)
        with atomic(item.path) as temporary:
            temporary.write_text(json.dumps(grid), encoding="utf-8")


def load_grids(checkpoint: Checkpoint, folder: Path) -> dict[str, str]:
    """Weight → type, of those that lie on a grid."""
    names = [spec.name for spec in matrices(checkpoint)]
    found = {name: read_json(folder / f"{name}.json") for name in names}
    return {name: grid for name, grid in found.items() if grid is not None}


def _grid(checkpoint: Checkpoint, spec: WeightSpec, types: Sequence[str]) -> str | None:
    stored = spec.dtype.lower()
    if spec.dtype not in DTYPES:
        return stored if stored in types else None
    W, dtype = checkpoint.tensor(spec.name), DTYPES[spec.dtype]
    return next((name for name in types if holds(W, dtype, formats.get(name))), None)
