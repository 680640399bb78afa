"""A recipe carried out: a plan is a list of stages, a build runs it and describes the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

import edgepack.allocate.stage
import edgepack.calibration.stage
import edgepack.check.stage
import edgepack.decompose.stage
import edgepack.export.merge_factors
import edgepack.export.stage
import edgepack.finetune.stage
import edgepack.grids.stage
import edgepack.measure.stage
import edgepack.merge.stage
import edgepack.recover.compensation
import edgepack.recover.sliced
import edgepack.recover.stage
import edgepack.slicing.stage
from edgepack.checkpoint import Checkpoint
from edgepack.core import accelerator
from edgepack.core.accelerator import CPU
from edgepack.core.artifact import MANIFEST, OPTIONAL, SOFTWARE, Artifact, digest
from edgepack.core.disk import clean
from edgepack.core.executor import Executor, Spread, Threads
from edgepack.core.headers import NotReadError, reading_headers
from edgepack.core.progress import Progress, Steps
from edgepack.core.results import settle
from edgepack.device_profile.profile import DeviceProfile
from edgepack.merge.documents import open_merge
from edgepack.output import software, vocabulary
from edgepack.output.environment import environment
from edgepack.output.folder import place_files, writing
from edgepack.output.provenance import (
    RECIPE,
    digests,
    published,
    remember,
    sources,
    without_none,
)
from edgepack.planning import device as profiles
from edgepack.planning import steps
from edgepack.planning.plan import Plan, open_plan
from edgepack.planning.room import check_disk, check_memory
from edgepack.recipe.sections import FIXED, Recipe
from edgepack.report.page import render

STEPS: tuple[Callable[[Plan], Plan], ...] = (
    edgepack.merge.stage.join,
    edgepack.check.stage.join,
    edgepack.slicing.stage.join,
    edgepack.recover.sliced.join,
    steps.rewrite,
    steps.name_formats,
    profiles.heed,
    edgepack.grids.stage.join,
    edgepack.calibration.stage.join,
    edgepack.allocate.stage.join,
    edgepack.decompose.stage.join,
    edgepack.recover.compensation.join,
    edgepack.recover.stage.join,
    edgepack.export.merge_factors.join,
    edgepack.export.stage.join,
    edgepack.measure.stage.join,
    edgepack.finetune.stage.join,
)
"""What a plan goes through, in order: each adds its stage where the recipe asks for it, and refuses
what cannot be done."""
VERSIONS = ("edgepack", "torch", "gguf", "transformers")


def make_plan(
    recipe: Recipe,
    target: str,
    base: Path,
    profile: DeviceProfile | None = None,
    *,
    original: Checkpoint | None = None,
    device: torch.device = CPU,
) -> Plan:
    """Check a recipe against its model and this machine: headers are read, never weights, and every
    error that a user can make is found. `base` is the recipe's folder, `profile` the device that
    the files are for, `original` the recipe's model where it is open already, `device` where this
    machine computes.

    Large files are hashed when the plan is carried out, unless the model is made of others: what
    they become is named by their content."""
    try:
        with reading_headers():
            return _make_plan(recipe, target, base, profile, original, device)
    except NotReadError:
        return _make_plan(recipe, target, base, profile, original, device)


def _make_plan(
    recipe: Recipe,
    target: str,
    base: Path,
    profile: DeviceProfile | None,
    original: Checkpoint | None,
    device: torch.device,
) -> Plan:
    merged = None if recipe.merge is None else partial(open_merge, recipe, base)
    opened = merged if original is None else lambda: original
    plan = open_plan(recipe, target, base, profile, opened, device)
    for step in STEPS:
        plan = step(plan)
    check_memory(plan)
    return plan


@torch.no_grad()
def run(
    plan: Plan,
    executor: Executor | None = None,
    *,
    until: str | None = None,
    uses: ExitStack | None = None,
) -> Steps[None]:
    """Complete the stages of a plan, up to the one of the name `until`. No result is removed by
    others before `uses` is closed."""
    with ExitStack() as own:
        for stage in plan.stages:
            (uses or own).enter_context(stage.in_use())
            yield from stage.complete(executor or Threads())
            if stage.name == until:
                return


def build(
    recipe: Recipe,
    target: str,
    *,
    base: Path,
    out: Path,
    force: bool = False,
    profile: DeviceProfile | None = None,
    device: torch.device = CPU,
    executor: Executor | None = None,
) -> Steps[Artifact]:
    """Carry a recipe out; every stage goes on where a killed run left it.

    `base` is the folder that relative paths in the recipe start from, `out` the folder to write,
    `profile` the device that the files are for, `device` where this machine computes, `executor`
    does the work (None: this machine).
    """
    plan = make_plan(recipe, target, base, profile, device=device)
    return (yield from write_output(plan, out=out, force=force, executor=executor))


def write_output(
    plan: Plan,
    *,
    out: Path,
    force: bool = False,
    reads: Sequence[Path] = (),
    executor: Executor | None = None,
) -> Steps[Artifact]:
    """Run a plan, and put its files into the folder `out`. `reads` are folders that it reads beside
    the recipe's sources; none of them is replaced."""
    clean()
    settle()
    with reading_headers():
        is_known = all(stage.known_key is not None for stage in plan.stages)
    if not is_known:
        yield Progress("plan", 0, 1, "the digests of the model's files")
    check_disk(plan, out)
    named = [*sources(plan).values(), *reads]
    with writing(out, force=force, sources=named, recipe=plan.base) as output:
        remember(plan)
        with ExitStack() as uses:
            yield from run(plan, executor, uses=uses)
            written = [stage for stage in plan.stages if stage.output() is not None]
            files: dict[str, dict[str, Any]] = {}
            for stage in written:
                files |= place_files(stage, output.folder)
            cluster = executor.facts() if isinstance(executor, Spread) else None
            manifest = _describe(plan, files, output.folder, cluster)
        output.publish([stage.result for stage in written])
    return Artifact(out, manifest)


def output_folder(recipe: Recipe, name: str, target: str, out: Path | None) -> Path:
    """Where the result goes: `out`, else ``NAME-TARGET`` in the working directory."""
    return out or Path(f"{recipe.export.name or name}-{target}")


def _describe(
    plan: Plan,
    files: dict[str, dict[str, Any]],
    folder: Path,
    cluster: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write recipe, report and manifest beside the files; the manifest."""
    recipe = yaml.safe_dump(_resolved(plan), sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(recipe, encoding="utf-8")
    software.write(folder, plan.model.source, plan.target.name)
    manifest = _manifest(plan) | {
        "environment": environment(accelerator.describe(plan.device)),
        "tokenizer": vocabulary.describe(folder, files),
        "files": files,
        "cluster": cluster,
    }
    (folder / "report.md").write_text(render(manifest), encoding="utf-8")
    own = {name: digest(folder / name) for name in (RECIPE, "report.md", SOFTWARE)}
    manifest["files"] = dict(sorted((files | own).items()))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def _resolved(plan: Plan) -> dict[str, Any]:
    """The recipe with every default that can be written into one."""
    recipe = without_none(published(plan))
    compress = plan.recipe.compress
    if compress is not None and compress.is_budget:
        for key in FIXED:  # the size chooses them
            recipe["compress"].pop(key, None)
    return recipe


def _manifest(plan: Plan) -> dict[str, Any]:
    prediction = plan.prediction
    return OPTIONAL | {
        "edgepack": version("edgepack"),
        "target": plan.target.name,
        "model": dict(plan.model.source),
        "sources": digests(plan),
        "recipe": published(plan),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in VERSIONS},
        },
        "device": accelerator.describe(plan.device),
        "stages": {stage.label: stage.key for stage in plan.stages},
        "bytes": plan.bytes_by_part(),
        "bits_per_weight": {
            "blocks": plan.bits_per_weight(blocks_only=True),
            "all": plan.bits_per_weight(blocks_only=False),
        },
        "fallbacks": [asdict(fallback) for fallback in plan.fallbacks],
        "requires": plan.target.requires(plan.model, plan.formats),
        "prediction": prediction.model_dump(mode="json") if prediction else None,
        "warnings": plan.warnings,
        **plan.facts,
    }
