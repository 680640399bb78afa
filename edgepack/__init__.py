"""edgepack: language models for phones and laptops, W ≈ Q + L·R on stock GGUF blocks.

>>> import edgepack
>>> artifact = edgepack.build("recipe.yaml", target="gguf")  # doctest: +SKIP
>>> artifact.manifest["bits_per_weight"]["blocks"]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.artifact import Artifact
    from edgepack.planning import Plan
    from edgepack.progress import Progress

__all__ = ["build", "plan"]


def plan(recipe: str | Path, target: str = "gguf") -> Plan:
    """What `build` would do: stages, bytes, bits per weight; reads headers only.

    Raises `edgepack.errors.EdgepackError` for everything in the recipe that cannot be done.
    """
    from edgepack import planning
    from edgepack.recipe import load

    path = Path(recipe)
    return planning.plan(load(path), target, path.parent)


def build(
    recipe: str | Path,
    target: str = "gguf",
    *,
    out: str | Path | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Carry a recipe out and return the output folder.

    `out` defaults to ``NAME-TARGET`` in the working directory; an existing folder is replaced
    only with `force`. `progress` hears what is being done. A killed build goes on where it stopped.
    """
    from edgepack import pipeline
    from edgepack.recipe import load

    path = Path(recipe)
    loaded = load(path)
    folder = pipeline.output_folder(loaded, path.stem, target, Path(out) if out else None)
    steps = pipeline.build(loaded, target, base=path.parent, out=folder, force=force)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            artifact: Artifact = end.value
            return artifact
        if progress:
            progress(step)
