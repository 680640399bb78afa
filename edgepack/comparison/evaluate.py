"""Models side by side through llama.cpp: on a text against a reference, and on zero-shot tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgepack.calibration import text as calibration_text
from edgepack.comparison.scoreboard import Scoreboard
from edgepack.core.artifact import Artifact
from edgepack.core.disk import scratch
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.metrics.divergence import Divergence, Perplexity, divergence, perplexity
from edgepack.metrics.multiple_choice import CONTEXT, SEQUENCES, answer
from edgepack.metrics.tasks import load_all
from edgepack.metrics.text import HELD_OUT, Text
from edgepack.model.open import open_model
from edgepack.output.provenance import changed, gone, is_same, located
from edgepack.pipeline import make_plan
from edgepack.planning.target import get
from edgepack.recipe.texts import SOURCE
from edgepack.runtimes.models import Model, Runnable

NO_TEXT = "--text FILE measures on another text, --tokens 0 on none"


@dataclass(frozen=True)
class Request:
    """What to compare, and on what; see `edgepack.evaluate`."""

    path: Path
    against: tuple[Path, ...] = ()
    reference: Path | None = None
    text: Path | None = None
    tokens: int = 6144
    context: int = 512
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    adapters: tuple[tuple[Path, float], ...] = ()

    @property
    def folder(self) -> Path | None:
        """The output folder whose original and text are at hand; None for a bare file."""
        return self.path if self.path.is_dir() else None

    @property
    def wants_text(self) -> bool:
        """Whether perplexity and KL are asked for."""
        return self.tokens > 0 and (self.text is not None or self.folder is not None)


def evaluate(request: Request) -> Steps[Scoreboard]:
    """Measure. Missing files, unknown tasks and unreadable items are found before any model is
    loaded."""
    models = {m.name: m for m in map(Model.from_path, (request.path, *request.against))}
    if request.adapters:
        first = models[str(request.path)]
        adapted = replace(first, name=f"{first.name} + adapters", adapters=request.adapters)
        models = {first.name: first, adapted.name: adapted, **models}
    if not (request.wants_text or request.tasks):
        raise RecipeError(
            f"{request.path}: nothing to measure",
            hint="--text FILE, or --tasks NAMES with --data FOLDER",
        )
    items = load_all(request.tasks, request.data, request.limit)
    text = _text(request) if request.wants_text else None
    with ExitStack() as stack:
        reference = yield from _reference(request, stack)
        every = {m.name: m for m in (reference, *models.values()) if m}
        sizes = {name: model.bytes for name, model in every.items()}
        about: dict[str, Any] | None = None
        predictions: dict[str, Divergence | Perplexity] = {}
        if text is not None:
            about, predictions = yield from _predictions(request, text, reference, models)
        context = max(request.context, CONTEXT)
        openers = {name: partial(m.open, context, SEQUENCES) for name, m in every.items()}
        answers = (yield from answer(openers, items)) if items else {}
    name = reference.name if reference else None
    return Scoreboard(name, sizes, about, predictions, answers)


def _reference(request: Request, stack: ExitStack) -> Steps[Runnable | None]:
    """What KL is measured from: `reference`, else the folder's original as f16, which `stack` will
    delete."""
    if request.reference is not None:
        return Model.from_path(request.reference)
    if request.folder is None:
        return None
    artifact = Artifact.open(request.folder)
    recipe = located(artifact)
    if recipe.model is None:  # of a merge
        raise gone(recipe, artifact)
    try:
        original = open_model(recipe.model, request.folder)
    except CheckpointError as error:
        raise gone(recipe, artifact) from error
    if not is_same(original.source, artifact.manifest["model"]):
        raise changed(recipe, artifact)
    folder = stack.enter_context(scratch())
    target = get(artifact.manifest["target"])
    return (yield from target.write_original(original, folder, "original"))


def _text(request: Request) -> Text:
    """`text`, else what the folder's own build measured on."""
    if request.text is not None:
        return _read(request.text)
    assert request.folder is not None
    artifact = Artifact.open(request.folder)
    recipe = located(artifact)
    if recipe.export.measure.text is not None:
        return _read(request.folder / recipe.export.measure.text)
    try:
        plan = make_plan(recipe, artifact.manifest["target"], request.folder)
        if plan.text is None:
            raise EdgepackError("nothing was calibrated")
        if isinstance(plan.text, Stage) and not plan.text.is_whole():
            raise EdgepackError("it is not in the cache any more")
        if plan.texts.get(SOURCE) != artifact.manifest["sources"].get(SOURCE):
            raise EdgepackError(f"{SOURCE}: the text has changed since the build")
        held_out = plan.text.tokens.held_out
    except EdgepackError as error:
        message = f"{request.folder}: has no held-out calibration text ({error})"
        raise EdgepackError(message, hint=NO_TEXT) from None
    return Text(HELD_OUT, held_out)


def _read(path: Path) -> Text:
    try:
        return Text(path.name, calibration_text.read(path, "--text"))
    except EdgepackError as error:
        raise EdgepackError(error.message, hint=NO_TEXT) from None


def _predictions(
    request: Request, text: Text, reference: Runnable | None, models: Mapping[str, Model]
) -> Steps[tuple[dict[str, Any], dict[str, Divergence | Perplexity]]]:
    """What the table says of a text: about the text, and by model."""
    context = request.context
    found: dict[str, Divergence | Perplexity] = {}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(m.open(context)) for name, m in models.items()}
        start = stack.enter_context(reference.open(context)) if reference else None
        first = start or next(iter(opened.values()))
        for name, model in opened.items():
            if model.vocab_size != first.vocab_size:
                raise EdgepackError(
                    f"{name}: has {model.vocab_size} tokens, the first model {first.vocab_size}",
                    hint="predictions compare only where the tokenizer is the same",
                )
        chunks = text.chunks(first, context, request.tokens)
        if start is None:
            found |= yield from perplexity(opened, chunks)
        else:
            assert reference is not None
            results = yield from divergence(start, opened, chunks)
            one = next(iter(results.values()))
            own = one.positions, one.reference_perplexity, one.reference_perplexity_error
            found |= {reference.name: Perplexity(*own), **results}
    about = {"name": text.name, "tokens": int(chunks.size), "context": chunks.shape[1]}
    return about, found
