"""The plan of a merge: which weights ΔW is added to, and in which metric they are rounded.

Rounding a packed weight again, blindly, is what ruins merged models: its error comes on top of the
first one. So ΔW is added to the original weights where they can be found, else to Q + L·R, and is
rounded with the H of the packed model's calibration wherever that is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepack.adapter_merge.stage import KeptHessians, Merged, Repack
from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, Lora
from edgepack.adapters.base import PackedBase
from edgepack.adapters.combine import DENSITY, Method, combine
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.text import MIN_SEQUENCES, check
from edgepack.calibration.text_stage import FileText
from edgepack.core import adapters
from edgepack.core.artifact import Artifact
from edgepack.core.disk import root
from edgepack.core.progress import Steps
from edgepack.core.results import LIST, Result
from edgepack.core.weights import WeightFormat
from edgepack.decompose.stage import Calibrated
from edgepack.errors import EdgepackError
from edgepack.export.stage import Export
from edgepack.measure import stage as measure
from edgepack.model.packed import Packed
from edgepack.output.provenance import is_same, located
from edgepack.pipeline import make_plan, write_output
from edgepack.planning.formats import Given
from edgepack.planning.plan import Plan
from edgepack.planning.target import get
from edgepack.recipe.sections import Recipe
from edgepack.recipe.texts import SOURCE, source_path

BEFORE = ("check", "text", "slice", "rft", "calibrate")
"""Stages of the packed model's build that come before its formats: a merge onto the original
weights finds them in the cache, or repeats them."""
ORIGINAL, PACKED = "the original weights", "Q + L·R of the packed model"
CALIBRATED, ALIKE = "H of the calibration", "all inputs alike (H = I)"
NEAREST = "no H: Q to nearest, L·R as it was"
"""How ΔW is rounded. Without H, Q and L·R that are fitted anew with H = I lose what the calibration
had put into them: KL 0.220, where rounding Q to nearest beside the old L·R has 0.162."""


@dataclass(frozen=True)
class Request:
    """What to merge: adapters of the output folder (names there, or paths) with their scales.
    `merge_factors` leaves no L and R in the result."""

    folder: Path
    adapters: tuple[tuple[str, float], ...]
    out: Path
    method: Method = "cat"
    rank: int | None = None
    density: float = DENSITY
    merge_factors: bool = False
    force: bool = False


@dataclass(frozen=True)
class Onto:
    """What ΔW is added to: a plan without its last stages, its model, H, and remarks."""

    plan: Plan
    calibration: Calibrated | None
    what: str
    metric: str
    notes: tuple[str, ...] = ()


def merge(request: Request) -> Steps[Artifact]:
    """Write the merged model into a folder of its own."""
    artifact, packed = Artifact.read(request.folder), PackedBase.open(request.folder)
    adapter = load(request, packed)
    plan = make_merge_plan(request, artifact, packed, adapter)
    reads = (request.folder,)
    with _kept_in_use(plan):
        return (yield from write_output(plan, out=request.out, force=request.force, reads=reads))


def _kept_in_use(plan: Plan) -> AbstractContextManager[None]:
    """What another build left in the cache stays there for as long as it is read."""
    repack = plan.find(Repack)
    if repack is None or not isinstance(repack.calibration, KeptHessians):
        return nullcontext()
    folder = repack.calibration.folder
    kept = Result(folder.parents[1], folder.parent.name, folder.name)
    kept.touch()
    return kept.in_use()


def load(request: Request, packed: PackedBase) -> Adapter:
    """The adapters as one."""
    found = [(files.read(_path(request.folder, n), packed), scale) for n, scale in request.adapters]
    return combine(found, request.method, rank=request.rank, density=request.density)


def _path(folder: Path, name: str) -> Path:
    """An adapter of the folder, or else whatever the path leads to."""
    inside = "/" not in name and (folder / adapters.FOLDER / name).is_dir()
    return files.find(folder, name) if inside or not Path(name).exists() else Path(name)


def make_merge_plan(
    request: Request, artifact: Artifact, packed: PackedBase, adapter: Adapter
) -> Plan:
    """Everything a merge will do; errors that a user can make are found here."""
    known = artifact.manifest["weights"]
    onto = _original(artifact, packed, adapter) or _packed(artifact, packed)
    formats = {name: _format(about, request.merge_factors) for name, about in known.items()}
    folded = {name for name, about in known.items() if about["rank"] != formats[name].rank}
    about = {
        "adapters": [{"name": Path(n).name, "scale": scale} for n, scale in request.adapters],
        "method": request.method,
        "onto": onto.what,
        "metric": onto.metric,
        "weights": len(adapter.weights),
        "folded_factors": len(folded),
    }
    mark = {"adapters": _digest(adapter.weights)}
    plan = onto.plan
    reference = Merged(plan.model, adapter.weights, mark)
    model = Merged(plan.model, adapter.weights, mark, vectors=packed.checkpoint)
    compress = plan.recipe.compress
    repack = Repack(
        model,
        onto.calibration,
        Given(formats),
        tuple(compress.damping) if compress else (),
        compress.iterations if compress else 0,
        packed,
        adapter.weights,
        frozenset({*adapter.weights, *folded}),
        onto.metric == NEAREST,
        known,
        about,
    )
    plan = replace(plan, model=model, chosen=Given(formats), notes=(*plan.notes, *onto.notes))
    plan = plan.adding(repack, notes=adapter.notes)
    return measure.join(plan.adding(Export(model, reference, plan.target, repack, None)))


def _format(about: Mapping[str, Any], merge_factors: bool) -> WeightFormat:
    formats = about["formats"]
    if merge_factors or not about["rank"]:
        return WeightFormat(formats["Q"])
    return WeightFormat(formats["Q"], about["rank"], formats["L"], formats["R"])


def _original(artifact: Artifact, packed: PackedBase, adapter: Adapter) -> Onto | None:
    """A merge onto the original weights; None if they are not to be had."""
    if artifact.manifest["merged"]:
        return None  # the recipe leads to the model before the first merge
    try:
        recipe = _quiet(located(artifact))
        plan = make_plan(recipe, packed.target, artifact.folder)
    except EdgepackError:
        return None
    same = is_same(plan.original.source, artifact.manifest["model"])
    shapes = {name: spec.shape for name, spec in plan.model.specs.items()}
    if not same or any(shapes.get(name) != _shape(lora) for name, lora in adapter.weights.items()):
        return None
    calibration, notes = plan.find(Calibrate), []
    if recipe.recover is not None:
        notes.append(
            "merge: weights that the adapters change are rounded anew, without what `recover` "
            "had trained of them"
        )
    if calibration is not None and not calibration.is_done:
        notes.append("merge: H of the calibration was not in the cache, and is computed again")
    kept = tuple(stage for stage in plan.stages if stage.name in BEFORE)
    return Onto(
        replace(plan, stages=kept),
        calibration,
        ORIGINAL,
        CALIBRATED if calibration else ALIKE,
        tuple(notes),
    )


def _packed(artifact: Artifact, packed: PackedBase) -> Onto:
    """A merge onto Q + L·R."""
    recipe = _quiet(located(artifact)).model_copy(update={"model": str(packed.file.resolve())})
    dense = Packed(packed.checkpoint, packed.weight, {"packed": packed.identity.digest})
    calibration = _kept_hessians(artifact, recipe)
    notes = [
        "merge: the original weights were not found here, so that the adapters are added to "
        "Q + L·R, whose own rounding errors stay"
    ]
    if artifact.manifest["merged"]:
        notes = ["merge: the adapters are added to Q + L·R of what was merged before"]
    if calibration is None:
        notes.append(
            "merge: H of the calibration is not in the cache, so that ΔW is added to Q and rounded "
            "to nearest, beside L·R as it is; expect a higher KL than with H"
        )
    metric = CALIBRATED if calibration else NEAREST
    target = get(packed.target, recipe.export)
    plan = Plan(recipe, target, artifact.folder, packed.checkpoint, dense)
    return Onto(_with_file_text(plan), calibration, PACKED, metric, tuple(notes))


def _kept_hessians(artifact: Artifact, recipe: Recipe) -> KeptHessians | None:
    """H that the build of the packed model left in the cache."""
    key, objective = artifact.manifest["stages"].get("calibrate"), recipe.calibrate.objective
    if key is None or objective == "layer":
        return None
    folder = root() / Calibrate.name / Path(key).name
    return KeptHessians(folder, objective) if (folder / LIST).is_file() else None


def _with_file_text(plan: Plan) -> Plan:
    """The plan with the calibration text to measure on, if that is a file that is still there."""
    calibrate = plan.recipe.calibrate
    if calibrate.source == "self":
        return plan
    try:
        path = source_path(calibrate.source, plan.base)
        sha256 = check(path, plan.original, MIN_SEQUENCES * calibrate.sequence_length)
    except EdgepackError:
        return plan
    text = FileText(plan.original, calibrate, path, sha256)
    return replace(plan, text=text, texts={**plan.texts, SOURCE: sha256})


def _quiet(recipe: Recipe) -> Recipe:
    """The recipe without what a merge does not measure: other people's files."""
    options = recipe.export.measure.model_copy(update={"stock": False})
    export = recipe.export.model_copy(update={"measure": options})
    return recipe.model_copy(update={"export": export})


def _shape(lora: Lora) -> tuple[int, int]:
    return lora.lora_B.shape[0], lora.lora_A.shape[1]


def _digest(weights: Mapping[str, Lora]) -> str:
    """Hex digest of all pairs."""
    content = hashlib.sha256()
    for name, lora in sorted(weights.items()):
        content.update(name.encode())
        for part in (lora.lora_A, lora.lora_B):
            content.update(part.contiguous().numpy().tobytes())
    return content.hexdigest()
