"""Recipe → plan → run: calibrate, decompose, export, measure, each yielding its progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from edgepack.allocate.costs import measure_candidates
from edgepack.calibration import sweep
from edgepack.calibration import text as calibration_text
from edgepack.checkpoint.finite import check_values
from edgepack.checkpoint.save import save
from edgepack.core.artifact import MANIFEST, Artifact, digest
from edgepack.core.disk import atomic, clean
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Stage
from edgepack.core.untrusted import read_json
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Settings, decompose
from edgepack.export import stage as targets
from edgepack.measure.stage import measure, verify
from edgepack.model.sliced import Sliced
from edgepack.model.stream import Tokens
from edgepack.output.folder import writing
from edgepack.output.provenance import RECIPE, digests, published, remember, sources, without_none
from edgepack.planning.plan import Plan, plan
from edgepack.recipe.sections import FIXED, Recipe
from edgepack.recipe.texts import SOURCE
from edgepack.recover import sliced as rft
from edgepack.recover import stage as recovery
from edgepack.recover import training
from edgepack.report.page import render
from edgepack.slicing import stage as slicing

WARNINGS = "warnings.json"
VERSIONS = ("edgepack", "torch", "gguf", "transformers")


def output_folder(recipe: Recipe, name: str, target: str, out: Path | None) -> Path:
    """Where the result goes: `out`, else ``NAME-TARGET`` in the working directory."""
    return out or Path(f"{recipe.export.name or name}-{target}")


@torch.no_grad()
def build(
    recipe: Recipe,
    target: str,
    *,
    base: Path,
    out: Path,
    force: bool = False,
) -> Steps[Artifact]:
    """Carry a recipe out; every stage goes on where a killed run left it.

    `base` is the folder that relative paths in the recipe start from, `out` the folder to write.
    """
    made = plan(recipe, target, base)
    clean()
    with writing(out, force=force, sources=sources(made).values(), recipe=base) as output:
        remember(made)
        found = yield from check(made)
        tokens = yield from write_text(made)
        yield from slice_model(made, tokens)
        yield from finetune(made, tokens)
        yield from calibrate(made, tokens)
        made = yield from _allocate(made)
        weights = None
        if made.packs:
            weights = yield from _decompose(made, tokens)
            weights = yield from _recover(made, weights, tokens)
        made = replace(made, warnings=(*made.warnings, *found))
        manifest = yield from _export(made, weights, tokens, output.folder)
        output.publish()
    return Artifact(out, manifest)


def check(made: Plan) -> Steps[list[str]]:
    """The check stage: what is to be said of the weights. Those that are no numbers are refused
    before anything is computed of them."""
    stage = made.check
    if not stage.is_whole():
        with stage.writing() as folder:
            found = yield from check_values(made.dense.checkpoint)
            with atomic(folder / WARNINGS) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
    warnings: list[str] = read_json(stage.folder / WARNINGS)
    return warnings


def write_text(made: Plan) -> Steps[Tokens | None]:
    """The calibration's tokens, from its file or written by the model and kept; None where no stage
    needs any."""
    if made.calibrate is None and made.slice is None:
        return None
    decoder, options, stage = made.dense, made.recipe.calibrate, made.text
    if stage is not None and not stage.is_whole():
        with stage.writing() as folder:
            yield from calibration_text.tokens(decoder, options, made.base, folder)
    kept, sha256 = (stage.folder if stage else None), made.texts.get(SOURCE)
    return (yield from calibration_text.tokens(decoder, options, made.base, kept, sha256))


def slice_model(made: Plan, tokens: Tokens | None) -> Steps[None]:
    """The slice stage: its folder is a Hugging Face checkpoint."""
    stage, options, checkpoint = made.slice, made.recipe.slice, made.checkpoint.counted
    if stage is None or stage.is_whole() or options is None or tokens is None:
        return
    assert isinstance(checkpoint, Sliced)
    with stage.writing() as folder:
        yield from slicing.run(checkpoint, options, tokens, folder)


def finetune(made: Plan, tokens: Tokens | None) -> Steps[None]:
    """The rft stage: the sliced checkpoint, trained."""
    stage, options, checkpoint = made.rft, made.recipe.slice, made.checkpoint.counted
    if stage is None or stage.is_whole() or options is None or tokens is None or made.slice is None:
        return
    assert isinstance(checkpoint, Sliced)
    assert options.recover is not None
    with stage.writing() as folder:
        before = checkpoint.taken_from(made.slice)
        how = _arithmetic(stage)
        yield from rft.finetune(before, made.dense, tokens, options.recover, folder, how)


def _arithmetic(stage: Stage) -> dict[str, str]:
    """What the plan chose for a stage that trains."""
    return {key: str(stage.options[key]) for key in ("device", "dtype")}


def calibrate(made: Plan, tokens: Tokens | None) -> Steps[None]:
    """The calibrate stage: its folder holds every H, unless the objective is ``layer``."""
    stage, options = made.calibrate, made.recipe.calibrate
    if stage is None or stage.is_whole() or tokens is None:
        return
    with stage.writing() as folder:
        if options.objective != "layer":
            output_side = options.objective == "model"
            steps = sweep.guided(
                made.decoder, tokens, folder, options.seed, output_side=output_side
            )
            yield from steps


def _allocate(made: Plan) -> Steps[Plan]:
    """The allocate stage, where a recipe gives a size; the plan with the formats it leads to."""
    stage, spent = made.allocate, made.allocation
    if stage is None or spent is None or made.calibrate is None or stage.is_whole():
        return made
    with stage.writing() as folder:
        yield from measure_candidates(made.decoder, spent.tried, made.calibrate.folder, folder)
    return plan(made.recipe, made.target, made.base)


def _decompose(made: Plan, tokens: Tokens | None) -> Steps[Path]:
    """The decompose stage: a folder with one file per matrix."""
    stage = made.decompose
    if not stage.is_whole():
        compress = made.recipe.compress
        settings = Settings(
            tuple(compress.damping) if compress else (), compress.iterations if compress else 0
        )
        one_shot = made.calibrate is not None and made.objective != "layer"
        hessians = made.calibrate.folder if made.calibrate and one_shot else None
        with stage.writing() as folder:
            known = tokens if made.calibrate else None
            yield from decompose(made.decoder, made.choices, settings, hessians, known, folder)
    return stage.folder


def _recover(made: Plan, weights: Path, tokens: Tokens | None) -> Steps[Path]:
    """The recover stage: the same weights trained, and norms with them."""
    stage, options = made.recover, made.recipe.recover
    if stage is None or options is None or tokens is None:
        return weights
    if not stage.is_whole():
        rate = options.learning_rate
        factors = 3 * rate  # L and R are far from their optimum, scales are near
        settings = training.Settings(
            steps=options.steps,
            tokens=options.tokens,
            train=tuple(options.train),
            scales=rate,
            factors=factors,
            norms=rate,
            evaluate_every=options.evaluate_every,
            patience=options.patience,
            seed=options.seed,
        )
        with stage.writing() as folder:
            student, teacher = made.decoder, made.dense
            yield from recovery.recover(
                student, teacher, weights, tokens, settings, folder, _arithmetic(stage)
            )
    return stage.folder


def _recovered(made: Plan, weights: Path | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What the recover stage says of itself, and the norms and biases it trained."""
    if made.recover is None or weights is None:
        return None, {}
    return recovery.about(recovery.read_report(weights)), recovery.read_norms(weights)


def _export(
    made: Plan, weights: Path | None, tokens: Tokens | None, folder: Path
) -> Steps[dict[str, Any]]:
    """Write, measure and describe the output folder; its manifest."""
    yield Progress("export", 0, 1, "writing files")
    recovered, norms = _recovered(made, weights)
    about: dict[str, dict[str, Any]] = {}
    if weights is None:
        yield from save(made.checkpoint, made.checkpoint.tensor, folder, "export")
    else:
        about = {name: load_weight(weights, name)[1] for name in made.choices}
        yield from targets.write(made, weights, about, norms, folder)
        yield from verify(made, folder)
    recipe = yaml.safe_dump(_resolved(made), sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(recipe, encoding="utf-8")
    measured = yield from measure(made, folder, weights, tokens)
    made = replace(made, warnings=(*made.warnings, *_losses(about)))
    manifest = _manifest(made, about, measured) | {"recovered": recovered}
    (folder / "report.md").write_text(render(manifest), encoding="utf-8")
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    manifest["files"] = {p.relative_to(folder).as_posix(): digest(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def _losses(about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What float16 scales could not hold, by weight."""
    kinds = {"clipped": "too large for float16 scales", "lost": "too small, and became 0"}
    return [
        f"{name}: {a[kind]} values {what}"
        for name, a in about.items()
        for kind, what in kinds.items()
        if a.get(kind)
    ]


def _resolved(made: Plan) -> dict[str, Any]:
    """The recipe with every default that can be written into one."""
    recipe = without_none(published(made))
    if made.allocation is not None:
        for key in FIXED:  # the size chooses them
            recipe["compress"].pop(key, None)
    return recipe


def _manifest(
    made: Plan, about: Mapping[str, Mapping[str, Any]], measured: dict[str, Any]
) -> dict[str, Any]:
    return {
        "edgepack": version("edgepack"),
        "target": made.target,
        "model": dict(made.checkpoint.source),
        "sources": digests(made),
        "recipe": published(made),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in VERSIONS},
        },
        "stages": {stage.name: stage.key for stage in made.stages},
        "allocation": None if made.allocation is None else made.allocation.as_dict(),
        "bytes": made.bytes_by_part(),
        "slice": made.sliced_parts(),
        "rft": rft.read_report(made.rft.folder) if made.rft else None,
        "bits_per_weight": {
            "blocks": made.bits_per_weight(blocks_only=True),
            "all": made.bits_per_weight(blocks_only=False),
        },
        "fallbacks": [asdict(fallback) for fallback in made.fallbacks],
        "requires": targets.requires(made),
        "warnings": list(made.warnings),
        "weights": {
            name: {**a, "dtype": made.checkpoint.specs[name].dtype} for name, a in about.items()
        },
        "measured": measured,
    }
