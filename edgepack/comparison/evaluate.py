"""Models side by side through llama.cpp: on a text against a reference, and on zero-shot tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgepack.calibration import text as calibration_text
from edgepack.comparison.scoreboard import Scoreboard
from edgepack.core.accelerator import CPU, described
from edgepack.core.artifact import Artifact
from edgepack.core.disk import scratch
from edgepack.core.executor import Executor, Spread
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.metrics.chunks import spread_chunks
from edgepack.metrics.divergence import Divergence, Perplexity, divergence, perplexity
from edgepack.metrics.multiple_choice import CONTEXT, SEQUENCES, answer
from edgepack.metrics.tasks import load_all
from edgepack.metrics.text import HELD_OUT, Text
from edgepack.model.open import open_model
from edgepack.output.provenance import changed, gone, is_same, located
from edgepack.pipeline import make_plan
from edgepack.planning.target import get
from edgepack.recipe.sections import Recipe
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
    original: str | None = None
    source: Path | None = None
    """Where the folder's original is, and the text that its build read, if not where they were."""
    device: torch.device = CPU

    @property
    def folder(self) -> Path | None:
        """The output folder whose original and text are at hand; None for a bare file."""
        return self.path if self.path.is_dir() else None

    @property
    def wants_text(self) -> bool:
        """Whether perplexity and KL are asked for."""
        return self.tokens > 0 and (self.text is not None or self.folder is not None)


def evaluate(request: Request, executor: Executor | None = None) -> Steps[Scoreboard]:
    """Measure. Missing files, unknown tasks and unreadable items are found before any model is
    loaded. The machines of `executor`, if it has several, share the chunks of the text."""
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
    text = find_text(request) if request.wants_text else None
    with ExitStack() as stack:
        reference = yield from find_reference(request, stack)
        every = {m.name: m for m in (reference, *models.values()) if m}
        sizes = {name: model.bytes for name, model in every.items()}
        about: dict[str, Any] | None = None
        predictions: dict[str, Divergence | Perplexity] = {}
        if text is not None:
            steps = _predictions(request, text, reference, models, executor)
            about, predictions = yield from steps
        context = max(request.context, CONTEXT)
        openers = {name: partial(m.open, context, SEQUENCES) for name, m in every.items()}
        answers = (yield from answer(openers, items)) if items else {}
    name = reference.name if reference else None
    return Scoreboard(name, sizes, about, predictions, answers)


def find_reference(request: Request, stack: ExitStack) -> Steps[Runnable | None]:
    """What KL is measured from: `reference`, else the folder's original as f16, which `stack` will
    delete."""
    if request.reference is not None:
        return Model.from_path(request.reference)
    if request.folder is None:
        return None
    artifact = Artifact.open(request.folder)
    recipe = _located(request, artifact)
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
    found = yield from target.write_original(original, folder, "original")
    return found.on(request.device)


def _located(request: Request, artifact: Artifact) -> Recipe:
    """The folder's recipe, with what is known here of where its sources are."""
    recipe = located(artifact)
    if request.original is not None:
        name = str(Path(request.original).resolve())
        model = name if Path(name).exists() else request.original
        recipe = recipe.model_copy(update={"model": model, "merge": None})
    if request.source is None:
        return recipe
    place = str(request.source.resolve())
    if recipe.export.measure.text is None:
        calibrate = recipe.calibrate.model_copy(update={"source": place})
        return recipe.model_copy(update={"calibrate": calibrate})
    measure = recipe.export.measure.model_copy(update={"text": place})
    export = recipe.export.model_copy(update={"measure": measure})
    return recipe.model_copy(update={"export": export})


def find_text(request: Request) -> Text:
    """`text`, else what the folder's own build measured on."""
    if request.text is not None:
        return _read(request.text)
    assert request.folder is not None
    artifact = Artifact.open(request.folder)
    recipe = _located(request, artifact)
    if recipe.export.measure.text is not None:
        return _read(request.folder / recipe.export.measure.text)
    try:
        where = described(artifact.manifest["device"])  # it wrote the text
        plan = make_plan(recipe, artifact.manifest["target"], request.folder, device=where)
        if plan.text is None:
            raise EdgepackError("nothing was calibrated")
        if plan.texts.get(SOURCE) != artifact.manifest["sources"].get(SOURCE):
            raise EdgepackError(f"{SOURCE}: the text has changed since the build")
        with ExitStack() as uses:
            if isinstance(plan.text, Stage):
                uses.enter_context(plan.text.in_use())
                if not plan.text.is_whole():
                    raise EdgepackError("it is not in the cache any more")
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
    request: Request,
    text: Text,
    reference: Runnable | None,
    models: Mapping[str, Model],
    executor: Executor | None,
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
            kept = stack.enter_context(scratch()) if isinstance(executor, Spread) else None
            if kept is not None:
                yield from spread_chunks(executor, reference, [*models.values()], chunks, kept)
            results = yield from divergence(start, opened, chunks, kept)
            one = next(iter(results.values()))
            own = one.positions, one.reference_perplexity, one.reference_perplexity_error
            found |= {reference.name: Perplexity(*own), **results}
    about = {"name": text.name, "tokens": int(chunks.size), "context": chunks.shape[1]}
    return about, found
