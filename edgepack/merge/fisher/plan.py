"""What a weighted merge needs before it: a calibration of every model on text of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.calibration import self_text
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.text import MIN_SEQUENCES, check
from edgepack.calibration.text_stage import FileText, WriteText
from edgepack.checkpoint import Checkpoint
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.errors import RecipeError
from edgepack.merge.fisher.adapted import checkpoint_of
from edgepack.merge.fisher.weighting import Weighting, has_hessian
from edgepack.merge.inputs import Input
from edgepack.merge.layout import Layout, MergedTensor
from edgepack.recipe import merging, sections
from edgepack.recipe.references import Reference
from edgepack.recipe.texts import source_path

METHODS = ("linear", "task_arithmetic")
"""Methods whose result is the base plus a multiple of a mean."""
ROWS = ".jsonl"
"""Ending of texts that may be conversations: a model is for the answers in them."""
TEXT = "text."
"""Behind `merge.`: start of the keys of texts in `sources` of a manifest."""


@dataclass(frozen=True)
class OfInput(Stage):
    """A stage that works on a model of a merge. It has the key and the folder of `stage`, and is of
    another class, because a plan's own calibration is found by its class."""

    stage: Stage
    model: str

    @property
    def name(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.stage.name

    @property
    def label(self) -> str:  # noqa: D102
        return f"{self.name} of {self.model}"

    @property
    def code(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: D102
        return self.stage.code

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return self.stage.inputs

    def options(self) -> dict[str, Any]:  # noqa: D102
        return self.stage.options()

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield from self.stage.run(folder, executor)

    def memory(self) -> int:  # noqa: D102
        return self.stage.memory()


@dataclass(frozen=True)
class Calibrated:
    """A model of a merge, by its place in `Layout.inputs`, and its calibration."""

    place: int
    name: str
    stage: Calibrate
    path: Path | None
    """Of its text; None if it writes its own."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run."""
        text, name = self.stage.text, self.name
        before = (OfInput(text, name),) if isinstance(text, WriteText) else ()
        return (*before, OfInput(self.stage, name))


@dataclass(frozen=True)
class Fisher:
    """The calibrations of a merge."""

    models: tuple[Calibrated, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All that run before the merge."""
        return tuple({s.key: s for model in self.models for s in model.stages}.values())

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of the calibrations: what the merge depends on."""
        return tuple(model.stage.key for model in self.models)

    @cached_property
    def texts(self) -> Mapping[str, tuple[Path, str]]:
        """Name of a text → where it is, and its sha256."""
        return {
            model.path.name: (model.path, model.stage.text.sha256)
            for model in self.models
            if model.path is not None and isinstance(model.stage.text, FileText)
        }

    def weighting(self) -> Weighting:
        """The arithmetic."""
        return Weighting(
            {model.place: model.stage for model in self.models},
            self.models[0].stage.objective == "model",
        )

    def facts(self, layout: Layout) -> dict[str, Any]:
        """How many tensors are weighted, and what the others are."""
        weighting = self.weighting()
        others = Counter(
            _role(layout, tensor) for tensor in layout.tensors if not weighting.applies(tensor)
        )
        count = len(layout.tensors) - sum(others.values())
        return {"by": "fisher", "weights": count, "plain_mean": dict(sorted(others.items()))}


def make_fisher(
    merge: merging.Merge, inputs: Mapping[Reference, Input], layout: Layout, base: Path
) -> tuple[Fisher, list[str]]:
    """The calibrations of a merge, and what is to be said of them. `base` is the recipe's folder.

    Raises `RecipeError` for methods, weights and families that do not go with `weighted`.
    """
    if merge.merge_method not in METHODS:
        raise RecipeError(
            f"merge.weighted: {merge.weighted} goes with {' and '.join(METHODS)}, not with "
            f"{merge.merge_method}",
            hint="others than means have no place for a metric",
        )
    _check_weights(layout.tensors)
    given_options = merge.calibrate or merging.MergeCalibration()
    options = sections.Calibrate(**given_options.model_dump())
    operands = dict.fromkeys(o.input for tensor in layout.tensors for o in tensor.operands)
    given = {model.model: model.text for model in merge.models or ()}
    models, notes = [], []
    for place in operands:
        model = layout.inputs[place]
        checkpoint = checkpoint_of(model)
        if checkpoint is None:
            raise RecipeError(
                f"merge.weighted: {model.name} is of a family that edgepack does not know",
                hint="leave out `weighted`: such models are merged by name, without calibration",
            )
        index = list(given).index(model.reference)
        key = f"merge.models.{index}.text"
        made, more = _calibrated(
            place, model.name, checkpoint, options, given[model.reference], base, key
        )
        models.append(made)
        notes += [f"{model.name}: {note}" for note in more]
    _check_names(models)
    return Fisher(tuple(models)), notes


def _calibrated(
    place: int,
    name: str,
    model: Checkpoint,
    options: sections.Calibrate,
    text: str | None,
    base: Path,
    key: str,
) -> tuple[Calibrated, Sequence[str]]:
    if text is not None and text != "self":
        path = source_path(text, base, key)
        options = options.model_copy(update={"source": text})
        sha256 = check(path, model, MIN_SEQUENCES * options.sequence_length, key)
        source = FileText(model, options, path, sha256, only_answers=path.suffix == ROWS)
        stage = Calibrate(model, source, options)
        return Calibrated(place, name, stage, path), ()
    if not model.architecture.gguf:
        raise RecipeError(
            f"{key}: {model.architecture.name} models do not write their own text here",
            hint="name a text file",
        )
    stage = Calibrate(model, WriteText(model, options), options)
    return Calibrated(place, name, stage, None), self_text.template_warnings(model.tokenizer)


def _check_weights(tensors: Sequence[MergedTensor]) -> None:
    for tensor in tensors:
        weights = [float(operand.values["weight"]) for operand in tensor.operands]
        if min(weights) < 0 or not max(weights) > 0:
            raise RecipeError(
                f"merge.weighted: {tensor.name} has the weights {weights}",
                hint="none is below 0, and one above: a negative share has no least disagreement",
            )


def _check_names(models: Sequence[Calibrated]) -> None:
    """Texts are found by their names in an output folder."""
    named: dict[str, Path] = {}
    for path in (model.path for model in models if model.path is not None):
        if named.setdefault(path.name, path).resolve() != path.resolve():
            raise RecipeError(
                f"merge.models: two texts are called {path.name}", hint="rename one of them"
            )


def _role(layout: Layout, tensor: MergedTensor) -> str:
    first = tensor.operands[0]
    checkpoint = layout.inputs[first.input].checkpoint
    spec = None if checkpoint is None else checkpoint.specs.get(first.name)
    return tensor.name if spec is None or has_hessian(spec) else spec.role
