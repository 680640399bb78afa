"""Whether a plan fits: its peak of memory into what the user allows, its files onto the disk."""

from __future__ import annotations

from pathlib import Path

from edgepack.core.disk import free_space, root
from edgepack.core.hardware import memory_limit
from edgepack.core.stage import Stage
from edgepack.core.tables import format_size
from edgepack.errors import EdgepackError, RecipeError
from edgepack.planning.plan import PROCESS, Plan

HELP = "make room (`edgepack cache prune`), or let EDGEPACK_CACHE name a folder on another disk"


def disk(plan: Plan) -> int:
    """Most bytes that the stages which are not done will add to the cache."""
    kept = peak = 0
    for stage in plan.stages:
        if stage.is_done:
            continue
        needed, there = stage.disk(), _there(stage)
        peak = max(peak, kept + needed.peak - there)
        kept += max(0, needed.kept - there)
    return max(0, peak)


def _there(stage: Stage) -> int:
    """Bytes that a killed run has written of a stage."""
    if not stage.has_begun:
        return 0
    return sum(p.stat().st_blocks * 512 for p in stage.partial.rglob("*") if p.is_file())


def check_memory(plan: Plan) -> None:
    """Refuse a plan that takes more memory than the user allows."""
    limit, needed = memory_limit(), plan.memory
    if limit is None or needed <= limit:
        return
    largest = max(plan.stages, key=lambda stage: stage.memory())
    raise RecipeError(
        f"--memory: {largest.label} takes about {format_size(needed)}, and {format_size(limit)} "
        "are allowed",
        hint=f"allow more; {format_size(PROCESS)} of it are the program with its libraries",
    )


def check_disk(plan: Plan, out: Path) -> None:
    """Refuse a build that the disk has no room for, before its first byte."""
    needed, free = disk(plan), free_space()
    if needed > free:
        less = {
            "calibrate.keep: false": plan.recipe.calibrate.keep is False,
            "export.measure.reference: streamed": plan.recipe.export.measure.reference != "written",
        }
        keeps = [f"{option} takes less" for option, is_set in less.items() if not is_set]
        raise EdgepackError(
            f"{root()}: the build needs {format_size(needed)} of disk there, and "
            f"{format_size(free)} are free",
            hint="; ".join([HELP, *keeps]),
        )
    written = sum(stage.disk().kept for stage in plan.stages if stage.output() is not None)
    free = free_space(out)
    if written > free:
        raise EdgepackError(
            f"{out}: the files take {format_size(written)}, and {format_size(free)} are free there",
            hint="make room, or write to another disk",
        )
