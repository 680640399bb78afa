"""The measure stage: perplexity, KL and top-1 of the files just written, through their runtime.

The reference is the original as float16. Beside ours stand the target's nearest baselines: for GGUF
stock quantizations of the same model with an imatrix of the same calibration tokens, for ONNX plain
rounding in the very types of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edgepack import formats
from edgepack.calibration import text as calibration_text
from edgepack.calibration.sizes import FLOAT
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, keyed
from edgepack.core.artifact import APART
from edgepack.core.disk import atomic, free_space, scratch
from edgepack.core.executor import Executor, Spread
from edgepack.core.hardware import available_memory
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.tables import format_size
from edgepack.core.untrusted import read_json
from edgepack.core.weight_files import load_imatrix
from edgepack.errors import ExportError, RecipeError
from edgepack.export.merge_factors import MergeFactors
from edgepack.export.stage import Export
from edgepack.formats.base import GgmlFormat
from edgepack.metrics.chunks import spread_chunks
from edgepack.metrics.divergence import CHUNK, compare, divergence
from edgepack.metrics.text import HELD_OUT, Text
from edgepack.model.decoder import Decoder, fits_in_memory
from edgepack.planning.formats import tensor_bytes
from edgepack.planning.plan import Plan
from edgepack.planning.plan import Text as CalibrationText
from edgepack.recipe.export import Measure as Options
from edgepack.recipe.texts import MEASURED, source_path
from edgepack.runtimes.models import Model, Runnable, Streamed

RESULT = "measured.json"
STREAMED = "streamed"
HALF = 2
"""Bytes of a float16."""
CHECKED = 64
"""Tokens that the original's predictions are checked on."""
SAME = 0.01
"""Mean KL, in nats a token, up to which two programs compute the same; f16's rounding is 1e-4."""


@dataclass(frozen=True)
class FileOfText:
    """A text file to measure on, held against its sha256 when it is read again."""

    path: Path
    sha256: str

    @cached_property
    def text(self) -> Text:
        """Its content."""
        content = calibration_text.read(self.path, MEASURED, sha256=self.sha256)
        return Text(self.path.name, content)


@dataclass(frozen=True)
class Measure(Stage):
    """What manifests say under ``measured``: metrics by model, or why there are none (`skipped`).

    Chunk by chunk: what a killed run measured is kept.
    """

    export: Export
    measure: Options
    file: FileOfText | None
    calibration_text: CalibrationText | None
    has_baselines: bool
    skipped: str | None
    device: torch.device = CPU

    name = "measure"

    @property
    def code(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: D102
        return ("edgepack.measure", self.export.target.module)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.export.key, self.export.original.key)

    def options(self) -> dict[str, Any]:  # noqa: D102
        library, text = self.export.target.runtime, self.calibration_text
        return {
            **self.measure.model_dump(exclude={"text"}),
            "baselines": self.has_baselines,
            "skipped": self.skipped,
            "runtime": version(library.package) if library.is_installed else None,
            "text": self.file.sha256 if self.file else text and text.key,
            **keyed(self.device),
        }

    @property
    def text(self) -> Text:
        """What the recipe says to measure on."""
        if self.file is not None:
            return self.file.text
        assert self.calibration_text is not None
        return Text(HELD_OUT, self.calibration_text.tokens.held_out)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        found: dict[str, Any] = {"skipped": self.skipped}
        if self.skipped is None:
            found = yield from self._measured(folder, executor)
        with atomic(folder / RESULT) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
        for path in folder.glob(f"{CHUNK}*"):
            path.unlink()

    def _measured(self, folder: Path, executor: Executor) -> Steps[dict[str, Any]]:
        """Write what to compare with, for as long as it takes, and compare."""
        export, target = self.export, self.export.target
        with scratch() as temporary:
            checked: dict[str, Any] = {}
            if self.is_streamed:
                reference: Runnable = Streamed("original", export.original, 0)
                checked = {"reference": STREAMED}
            else:
                reference = yield from target.write_original(export.original, temporary, "measure")
            if target.packs and not self.is_streamed:
                checked = {"reference_kl": (yield from self._check(reference))}
            models: list[Runnable] = [target.written(export.folder, export.model)]
            if isinstance(export.decomposed, MergeFactors):
                models.append((yield from self._with_factors(export.decomposed, temporary)))
            if self.has_baselines:
                models += yield from self._baselines(temporary)
            models = [model.on(self.device) for model in models]
            reference = reference.on(self.device)
            steps = compare_models(self.measure, self.text, reference, models, folder, executor)
            return (yield from steps) | checked

    @property
    def is_streamed(self) -> bool:
        """Whether the original's predictions come from our own forward pass: no file of it is
        written, and a fault of the conversion shows in the KL of our files."""
        return self.measure.reference == STREAMED

    def _with_factors(self, merged: MergeFactors, temporary: Path) -> Steps[Runnable]:
        """The files as they would be with L and R beside Q."""
        export, folder = self.export, temporary / "factors"
        folder.mkdir()
        formats = merged.factored.chosen.formats
        norms = export.recovered.norms if export.recovered else {}
        write = export.target.write(export.model, formats, merged.load_factored, norms, folder)
        for step in write:
            yield Progress("measure", step.done, step.total, f"{APART}: {step.label}")
        found = export.target.written(folder, export.model)
        assert isinstance(found, Model)
        return replace(found, name=APART)

    def _baselines(self, folder: Path) -> Steps[list[Model]]:
        export, target = self.export, self.export.target
        assert export.decomposed is not None
        assert export.weights is not None
        chosen = target.nearest_baselines(export.model, export.decomposed.chosen.formats)
        imatrix = partial(load_imatrix, export.weights.folder)
        steps = target.write_baselines(export.model, chosen, imatrix, folder, "measure")
        return [Model(label, path) for label, path in (yield from steps).items()]

    def _check(self, reference: Runnable) -> Steps[float]:
        """The mean KL of the original as written from what our own reading of it predicts. A fault
        of the conversion would be in the packed files as well, and no KL between the two could see
        it."""
        yield Progress("measure", 0, 1, "the original, as it was read and as it was written")
        context = self.measure.context
        decoder = Decoder(self.export.original, device=self.device)
        with reference.open(context) as runtime:
            tokens = self.text.chunks(runtime, context, context)[0]
            window = decoder.dimensions.sliding_window
            tokens = tokens[: min(CHECKED, window or CHECKED)]
            own = decoder.logits(torch.from_numpy(tokens[:-1]).unsqueeze(0))[0]
            written = runtime.logits(tokens[:-1].tolist())
        kl = float(compare(own.cpu().numpy(), written, tokens[1:]).kl.mean())
        if not kl < SAME:
            raise ExportError(
                f"the file for {self.export.target.name} does not compute what the model does: "
                f"mean KL {kl:.3g} over {len(tokens) - 1} tokens, already as f16",
                hint="please report it, with the model's config.json; nothing was written",
            )
        return kl

    def facts(self) -> dict[str, Any]:
        """The metrics."""
        return {"measured": read_json(self.folder / RESULT)} if self.is_done else {}

    def disk(self) -> Disk:
        """The original as float16, and what others write, for as long as it takes."""
        export = self.export
        if self.skipped is not None:
            return Disk(0, 0)
        original = 0 if self.is_streamed else half_bytes(export.original)
        if export.decomposed is None:
            return Disk(original, 0)
        chosen = export.decomposed.chosen.formats
        own, count = export.disk().peak, 0
        if self.has_baselines:
            count = len(export.target.nearest_baselines(export.model, chosen))
        count += isinstance(export.decomposed, MergeFactors)
        return Disk(original + count * own, 0)

    def memory(self) -> int:
        """The files side by side, with each runtime's logits and scratch space; of a checkpoint
        both models as float32, or of one that is too large a block with embeddings and head."""
        export, target = self.export, self.export.target
        if self.skipped is not None:
            return 0
        logits = FLOAT * self.measure.context * export.model.dimensions.vocab_size
        if target.packs:
            assert export.decomposed is not None
            elements = sum(s.numel for s in export.model.specs.values())
            own = tensor_bytes(export.model, export.decomposed.chosen.formats)
            written = target.memory(
                0 if self.is_streamed else elements, own, logits, stock=self.measure.stock
            )
            return written + (_own_pass(export.original) if self.is_streamed else 0)
        return _own_pass(export.original) + _own_pass(export.model) + 5 * logits


def half_bytes(model: Checkpoint) -> int:
    """Bytes of a model as float16."""
    return HALF * sum(spec.numel for spec in model.specs.values())


def _own_pass(model: Checkpoint) -> int:
    """Bytes that our own forward pass keeps: the model as float32, or of one that is too large a
    block with embeddings and head."""
    whole = fits_in_memory(Decoder(model))
    return FLOAT * sum(s.numel for s in model.specs.values() if whole or s.block in (None, 0))


def compare_models(
    options: Options,
    text: Text,
    reference: Runnable,
    models: Sequence[Runnable],
    folder: Path | None = None,
    executor: Executor | None = None,
) -> Steps[dict[str, Any]]:
    """Metrics of models against the reference; `folder` keeps those of every chunk, for a run that
    is killed (`divergence`). The machines of `executor`, if it has several, share the chunks."""
    context = options.context
    with ExitStack() as stack:
        if folder is None and isinstance(executor, Spread):
            folder = stack.enter_context(scratch())
        original = stack.enter_context(reference.open(context))
        chunks = text.chunks(original, context, options.tokens)
        if folder is not None:
            yield from spread_chunks(executor, reference, models, chunks, folder)
        opened = {m.name: stack.enter_context(m.open(context)) for m in models}
        found = yield from divergence(original, opened, chunks, folder)
    sizes: Mapping[str, int] = {m.name: m.bytes for m in models}
    return {
        "text": text.name,
        "tokens": int(chunks.size),
        "context": context,
        "results": {name: {"bytes": sizes[name], **found[name].as_dict()} for name in sizes},
    }


def join(plan: Plan) -> Plan:
    """The plan with what is measured of its files, or why nothing is."""
    plan = _with_context(plan)
    options, export = plan.recipe.export.measure, plan.find(Export)
    assert export is not None
    file = None
    if options.text is not None and options.tokens:
        path = source_path(options.text, plan.base, MEASURED)
        sha256 = calibration_text.check(path, plan.original, options.context, MEASURED)
        file = FileOfText(path, sha256)
        plan = replace(plan, texts={**plan.texts, MEASURED: sha256})
    has_baselines = options.stock and plan.recipe.compress is not None and plan.target.packs
    given = (export, options, file, plan.text, has_baselines, _skipped(plan))
    stage = Measure(*given, plan.device)
    return plan.adding(stage, notes=_too_large(plan, stage))


def _too_large(plan: Plan, stage: Measure) -> list[str]:
    """That the original as float16 has no room, or is read from the disk at every chunk."""
    if stage.skipped is not None or not plan.target.packs or stage.is_streamed:
        return []
    size = half_bytes(plan.original)
    for what, there in (("disk", free_space()), ("memory", available_memory())):
        if size > there:
            return [
                f"export.measure: the original as float16 takes {format_size(size)}, and there are "
                f"{format_size(there)} of {what}; reference: streamed measures from the checkpoint "
                "itself, tokens: 0 nothing"
            ]
    return []


def _skipped(plan: Plan) -> str | None:
    """Why nothing is measured; None if something is."""
    options, library = plan.recipe.export.measure, plan.target.runtime
    if not options.tokens:
        return "export.measure.tokens is 0"
    if not library.is_installed:
        how = f"pip install 'edgepack[{library.extra}]'"
        return f"{library.package} is not installed ({how})"
    if missing := _not_in_ggml(plan):
        return f"{library.package} does not have {', '.join(missing)}"
    if plan.text is None and options.text is None:
        return "nothing was calibrated and export.measure.text is not set"
    return None


def _not_in_ggml(plan: Plan) -> list[str]:
    """The types that files may have and that ggml, as it is installed, does not read."""
    compress = plan.recipe.compress
    candidates = compress.candidates if compress is not None else None
    names = {fmt.Q for fmt in plan.formats.values()} | set(candidates or ())
    found = {name: formats.get(name) for name in sorted(names)}
    return [n for n, fmt in found.items() if isinstance(fmt, GgmlFormat) and not fmt.in_ggml]


def _with_context(plan: Plan) -> Plan:
    """The recipe with a context to measure in that the model has; one that was asked for and is
    longer is refused."""
    recipe, most = plan.recipe, plan.original.dimensions.max_position_embeddings
    options = recipe.export.measure
    if options.context <= most:
        return plan
    if "context" in options.model_fields_set and options.tokens:
        raise RecipeError(
            f"export.measure.context: {options.context} is more than the model's {most} positions",
            hint=f"write context: {most} or less",
        )
    export = recipe.export.model_copy(
        update={"measure": options.model_copy(update={"context": most})}
    )
    return replace(plan, recipe=recipe.model_copy(update={"export": export}))
