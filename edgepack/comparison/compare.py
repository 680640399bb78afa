"""Which model is closest to the original at which size: recipes at several sizes, beside every
stock type with an imatrix.

Stock's files are those llama-quantize makes of the model at one type for all blocks (with its own
substitute where widths do not allow that), with its own choice for embeddings (q8_0, or q6_k where
widths allow) and, where that is smaller, with the blocks' type for them too; and, as the best
mixtures that we know of, in the very types that ours chose (what `--tensor-type` can do). All are
measured in one run on the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgepack.core.accelerator import CPU
from edgepack.core.disk import scratch
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.tables import format_size
from edgepack.core.weight_files import load_imatrix
from edgepack.decompose.stage import Decompose
from edgepack.device_profile.profile import DeviceProfile
from edgepack.errors import RecipeError
from edgepack.measure.stage import Measure, compare_models
from edgepack.metrics.multiple_choice import CONTEXT, SEQUENCES, Answers, Mean, Open, answer
from edgepack.metrics.speed import Speed, speeds
from edgepack.metrics.tasks import Item
from edgepack.pipeline import build, make_plan, run
from edgepack.planning.plan import Plan
from edgepack.planning.target import get, names
from edgepack.recipe.sections import FIXED, Recipe
from edgepack.runtimes.models import Model, Runnable

if TYPE_CHECKING:
    from edgepack.planning.target import Types

OTHERS = "others"
AT_ONCE = 4
"""Models measured side by side: each has its logits of a chunk in memory."""


@dataclass(frozen=True)
class Point:
    """One model (factors included): who made it (`Target.maker`, `OTHERS`, our recipe's name), its
    bytes, its distance to the original, its tokens per second here, and for ours the KL that was
    expected (nats a token) and, where there are factors, the speed without them; its mean accuracy
    over the tasks, if any."""

    label: str
    maker: str
    nbytes: int
    kl_mean: float
    kl_error: float
    top1: float
    perplexity: float
    speed: Speed
    expected_kl: float | None = None
    bare_speed: Speed | None = None
    accuracy: Mean | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    recipes: Mapping[str, tuple[Recipe, Path]],
    sizes: Sequence[int],
    out: Path,
    against: Sequence[Path] = (),
    tasks: Mapping[str, Sequence[Item]] | None = None,
    target: str = "gguf",
    profile: DeviceProfile | None = None,
    device: torch.device = CPU,
    executor: Executor | None = None,
) -> Steps[list[Point]]:
    """Build every recipe (given with its folder) at every size into `out`, write the peers' files
    beside them for as long as it takes, and measure all, those `against` it and zero-shot `tasks`
    included. Types that are slow on the device of a `profile` are left out. `device`
    computes. What cannot be is found before any work.
    """
    kind = get(target)
    if kind.maker is None:
        comparable = [name for name in names() if get(name).maker]
        hint = "choose one of: " + ", ".join(comparable)
        raise RecipeError(f"--target: {target!r} cannot be compared", hint=hint)
    kind.runtime.check()
    others = [Model.from_path(path) for path in against]
    wanted = {
        f"{name}-{nbytes / 1e6:g}MB": (at_size(recipe, nbytes), base)
        for name, (recipe, base) in recipes.items()
        for nbytes in sizes
    }
    makers = {model.name: OTHERS for model in others}
    makers |= {f"edgepack {name}": f"edgepack, {name.rpartition('-')[0]}" for name in wanted}
    plan_for = partial(make_plan, target=target, profile=profile, device=device)
    plans = {name: plan_for(one, base=base) for name, (one, base) in wanted.items()}
    plan = next(iter(plans.values()))
    models, expected, mixtures = [], {}, {}
    for name, (recipe, base) in wanted.items():
        artifact = yield from build(
            recipe,
            target,
            base=base,
            out=out / name,
            force=True,
            profile=profile,
            device=device,
            executor=executor,
        )
        models.append(Model(f"edgepack {name}", artifact.base, artifact.factors))
        expected[models[-1].name] = artifact.manifest["allocation"]["expected_kl"]
        if plans[name].model.key == plan.model.key:
            weights = artifact.manifest["weights"].items()
            label = f"{kind.maker}, in the types of {name}"
            mixtures[label] = {weight: about["formats"]["Q"] for weight, about in weights}
    first, base = next(iter(recipes.values()))
    plain = plan_for(first, base=base)
    measure = plain.find(Measure)  # with what it says of measuring
    assert measure is not None
    every = kind.all_baselines(plan.model, plan.formats) | mixtures
    with ExitStack() as uses, scratch() as temporary:
        yield from run(plan, until=Decompose.name, uses=uses)
        reference = yield from kind.write_original(plan.original, temporary, "original")
        models += others
        models += yield from _baselines(plan, every, temporary)
        found = yield from _metrics(measure, reference, models, executor)
        taken = yield from _speeds(models)
        right = yield from _accuracies(models, tasks or {})
    points = [
        Point(
            label=label,
            maker=makers.get(label, kind.maker),
            nbytes=int(m["bytes"]),
            **{key: m[key] for key in ("kl_mean", "kl_error", "top1", "perplexity")},
            speed=taken[label],
            expected_kl=expected.get(label),
            bare_speed=taken.get(label + BARE),
            accuracy=right.get(label),
        )
        for label, m in found.items()
    ]
    return sorted(points, key=lambda point: point.nbytes)


def _baselines(plan: Plan, every: Mapping[str, Types], folder: Path) -> Steps[list[Model]]:
    """Others' files, given as label → types."""
    decomposed = plan.find(Decompose)
    assert decomposed is not None
    imatrix = partial(load_imatrix, decomposed.folder)
    steps = plan.target.write_baselines(plan.model, every, imatrix, folder, "baselines")
    return [Model(label, path) for label, path in (yield from steps).items()]


def _metrics(
    measure: Measure,
    reference: Runnable,
    models: Sequence[Model],
    executor: Executor | None,
) -> Steps[dict[str, dict[str, float]]]:
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(models), AT_ONCE):
        some = models[start : start + AT_ONCE]
        steps = compare_models(measure.measure, measure.text, reference, some, executor=executor)
        found |= (yield from steps)["results"]
    return found


BARE = " without its factors"


def _speeds(models: Sequence[Model]) -> Steps[dict[str, Speed]]:
    """Of every model, and of those with factors without them (under the name with `BARE`)."""
    bare = [replace(m, name=m.name + BARE, adapter=None) for m in models if m.adapter]
    return (yield from speeds({model.name: model.open for model in [*models, *bare]}))


def _accuracies(
    models: Sequence[Model], tasks: Mapping[str, Sequence[Item]]
) -> Steps[dict[str, Mean]]:
    """Mean over the tasks, length-normalised where the harness does."""
    if not tasks:
        return {}
    openers: dict[str, Open] = {m.name: partial(m.open, CONTEXT, SEQUENCES) for m in models}
    answers: dict[str, dict[str, Answers]] = yield from answer(openers, tasks)
    return {
        name: Mean.average([Mean.from_items(one.usual) for one in found.values()])
        for name, found in answers.items()
    }


def at_size(recipe: Recipe, nbytes: int) -> Recipe:
    """The recipe with that size as its target, to be measured later."""
    given = recipe.model_dump(mode="json", exclude_none=True)
    compress = given.get("compress", {})
    for key in (*FIXED, "bits_per_weight"):
        compress.pop(key, None)
    given["compress"] = compress | {"target_size": nbytes}
    given["export"]["measure"]["tokens"] = 0
    return Recipe.model_validate(given)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no smaller or equal one betters, by size."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nbytes, p.kl_mean)):
        if not best or point.kl_mean < best[-1].kl_mean:
            best.append(point)
    return best


def table(points: Sequence[Point]) -> list[list[str]]:
    """Rows for people, smallest first; a star marks those that nothing smaller betters."""
    best = frontier(points)
    tasks = ["zero-shot"] if any(point.accuracy for point in points) else []
    headers = ["mean KL", "expected", "same top token", "perplexity", *tasks, "prompt", "decode"]
    rows = [["", "model", "size", *headers]]
    for point in points:
        row = ["*" if point in best else "", point.label, format_size(point.nbytes)]
        row += [f"{point.kl_mean:.4f} ± {point.kl_error:.4f}"]
        row += ["–" if point.expected_kl is None else f"{point.expected_kl:.4f}"]
        row += [f"{100 * point.top1:.1f} %", f"{point.perplexity:.2f}"]
        if point.accuracy:
            row += [f"{100 * point.accuracy.value:.1f} ± {100 * point.accuracy.error:.1f} %"]
        rows.append([*row, *_tokens_per_second(point)])
    return rows


def _tokens_per_second(point: Point) -> list[str]:
    """Prompt and decode, in brackets without the factors."""
    own, bare = point.speed, point.bare_speed
    if bare is None:
        return [f"{own.prompt:.0f} t/s", f"{own.decode:.1f} t/s"]
    prompt = f"{own.prompt:.0f} ({bare.prompt:.0f}) t/s"
    return [prompt, f"{own.decode:.1f} ({bare.decode:.1f}) t/s"]
