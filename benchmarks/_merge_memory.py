"""Merges of one base that are computed in memory and judged by our own forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks._merge_tasks import LENGTH, Task, losses
from benchmarks.same_type import MODEL
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.merge.documents import plan_merges
from edgepack.merge.stage import Merge, Options
from edgepack.model.decoder import Decoder
from edgepack.recipe.read import load_merges
from edgepack.runtimes.torch_decoder import TorchDecoder


def planned(section: Mapping[str, Any], path: Path) -> Merge:
    """The stage of a section `merge`, which is written to `path`; what it needs is complete."""
    path.write_text(yaml.safe_dump(dict(section), sort_keys=False), encoding="utf-8")
    stage = plan_merges(load_merges(path), path.parent, Options())
    for one in () if stage.fisher is None else stage.fisher.stages:
        finish(one.complete(Threads()))
    return stage


@torch.no_grad()
def merged(stage: Merge) -> dict[str, Tensor]:
    """All tensors of a merge in float32, before they are rounded to a file's type."""
    work = stage.work
    return {tensor.name: work.merge(tensor).float() for tensor in stage.layout.tensors}


def validated(tensors: Mapping[str, Tensor], tasks: Sequence[Task]) -> dict[str, list[float]]:
    """Losses on all validation rows of every task, with `tensors` in place of the base's."""
    base = open_checkpoint(MODEL)
    replaced = {name: lambda W=W: W for name, W in tensors.items()}
    with TorchDecoder(Decoder(base, replaced), LENGTH) as runtime:
        return {task.name: losses(runtime, task.examples["valid"]) for task in tasks}
