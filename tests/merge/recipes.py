"""Merges of small random models for tests: recipes, and the stage that a recipe leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.merge.documents import plan_merges
from edgepack.merge.stage import Merge, Options
from edgepack.recipe import merging
from edgepack.recipe.read import parse

LINEAR = {
    "merge_method": "linear",
    "models": [
        {"model": "a", "parameters": {"weight": 0.25}},
        {"model": "b", "parameters": {"weight": 0.75}},
    ],
}


def merges(*documents: dict[str, Any]) -> list[merging.Merge]:
    """Documents as a recipe has them."""
    found = parse({"merge": list(documents)}).merge
    assert isinstance(found, list)
    return found


def plan(place: Path, *documents: dict[str, Any], **options: int) -> Merge:
    """The last stage of a file in `place`."""
    return plan_merges(merges(*documents), place, Options(**options))


def made(stage: Merge) -> dict[str, torch.Tensor]:
    """All tensors of a merge, which is carried out."""
    for one in stages(stage):
        finish(one.complete(Threads()))
    return tensors(stage.folder)


def stages(stage: Merge) -> list[Merge]:
    """The merge, after those that it needs."""
    from edgepack.merge.stage import stages_of

    return stages_of(stage)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    """Put another tensor into a folder of one file, or take it out."""
    path = folder / "model.safetensors"
    found = load_file(path)
    if value is None:
        del found[name]
    else:
        found[name] = value
    save_file(found, path, metadata={"format": "pt"})
