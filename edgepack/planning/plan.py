"""Recipe → plan: headers are read, never weights, and every error a user can make is found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from edgepack.allocate.budget import Allocation, files_size, search, spend
from edgepack.allocate.costs import Search
from edgepack.calibration.text import MIN_SEQUENCES, counts
from edgepack.calibration.text import check as check_text
from edgepack.checkpoint import Checkpoint, open_checkpoint, vocabulary_check
from edgepack.checkpoint.save import dtype_of
from edgepack.core.errors import RecipeError, missing_extra
from edgepack.core.stage import Stage
from edgepack.core.weights import WeightSpec
from edgepack.decompose.stage import Choice
from edgepack.export._onnx_pack import layout
from edgepack.export.profiles import PROFILES
from edgepack.model.decoder import Decoder
from edgepack.model.sliced import Sliced
from edgepack.planning.formats import Fallback, choose, factor_bytes, format_of
from edgepack.planning.source import READS, rewritten, sliced, text_stage
from edgepack.recipe.sections import Recipe
from edgepack.recipe.texts import MEASURED, SOURCE, source_path
from edgepack.recover.stage import choose_arithmetic

TARGETS = ("gguf", "onnx", "checkpoint")
NOT_BUILT = ("merge",)
"""Sections of the recipe whose stages do not exist yet."""

BLOCKS, VECTORS = "blocks", "norms and biases"
PARTS = {
    "token_embd": "embeddings",
    "position_embd": "embeddings",
    "output": "head",
    "attn_shortcut": "shortcuts",
    "ffn_shortcut": "shortcuts",
}
"""Role → part of the model in the ledger; other matrices are the blocks'."""

CHECKS = ("edgepack.checkpoint.finite", *READS)
CALIBRATES = ("edgepack.calibration.sweep", *READS)
ALLOCATES = ("edgepack.allocate.costs", "edgepack.formats")
DECOMPOSES = ("edgepack.decompose.stage", "edgepack.formats", *READS)
RECOVERS = ("edgepack.recover.stage", "edgepack.formats")
"""The code that the results of stages depend on."""


@dataclass(frozen=True)
class Plan:
    """Everything `build` will do, and what will come of it."""

    recipe: Recipe
    target: str
    base: Path
    texts: Mapping[str, str]
    """Key of the recipe that names a text → sha256 of what the plan found in it."""
    checkpoint: Checkpoint
    choices: Mapping[str, Choice]
    fallbacks: tuple[Fallback, ...]
    check: Stage
    """A look at every weight: is it a number, can float16 hold it."""
    text: Stage | None
    """Where the text is kept that the model writes for itself."""
    slice: Stage | None
    rft: Stage | None
    """Recovery fine-tuning of what was sliced."""
    calibrate: Stage | None
    allocate: Stage | None
    """Where the recipe gives a size: the stage that measures what formats and ranks cost."""
    allocation: Allocation | None
    """What that size buys, as far as is known."""
    decompose: Stage
    recover: Stage | None
    warnings: tuple[str, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that are kept in the cache, in order."""
        made: tuple[Stage | None, ...] = (self.check, self.text, self.slice, self.rft)
        if self.packs:
            made += (self.calibrate, self.allocate, self.decompose, self.recover)
        return tuple(stage for stage in made if stage is not None)

    @property
    def packs(self) -> bool:
        """Whether weights are stored in formats, not just written as a checkpoint."""
        return self.target != "checkpoint"

    @property
    def decoder(self) -> Decoder:
        """The model that is compressed, streamed."""
        return Decoder(self.checkpoint)

    @property
    def dense(self) -> Decoder:
        """The model as it was found, streamed: it writes the text, and all is compared with it."""
        return Decoder(self.checkpoint.original)

    @property
    def objective(self) -> str:
        """The recipe's; ``none`` where nothing is quantized."""
        return self.recipe.calibrate.objective if self.calibrate else "none"

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of tensors in the files to come, by part of the model."""
        sizes = dict.fromkeys((BLOCKS, *PARTS.values(), VECTORS, "factors"), 0)
        for spec in self.checkpoint.specs.values():
            choice = self.choices.get(spec.name)
            part = VECTORS if choice is None else PARTS.get(spec.role, BLOCKS)
            sizes[part] += self._nbytes(spec)
            sizes["factors"] += factor_bytes(spec, choice) if choice else 0
        return {part: size for part, size in sizes.items() if size}

    def _nbytes(self, spec: WeightSpec) -> int:
        """Bytes of a weight, without its factors."""
        if not self.packs:
            return spec.numel * dtype_of(spec).itemsize
        choice = self.choices.get(spec.name)
        return format_of(choice.format).nbytes(spec.shape) if choice else 4 * spec.numel

    def sliced_parts(self) -> dict[str, tuple[int, int]] | None:
        """Number of weights before and after slicing, by part; None where nothing is sliced."""
        narrow = self.checkpoint.counted
        return narrow.weights_by_part() if isinstance(narrow, Sliced) else None

    def bits_per_weight(self, *, blocks_only: bool) -> float:
        """Bits stored (Q, scales, L and R) per element of the matrices."""
        known = self.checkpoint.counted.specs
        bits = count = 0
        for name, choice in self.choices.items():
            spec = self.checkpoint.specs[name]
            if blocks_only and spec.block is None:
                continue
            bits += 8 * (self._nbytes(spec) + factor_bytes(spec, choice))
            count += known[name].numel
        return bits / count


def plan(recipe: Recipe, target: str, base: Path) -> Plan:
    """Check a recipe against its model and this machine; `base` is the recipe's folder."""
    if target not in TARGETS:
        hint = "choose one of: " + ", ".join(TARGETS)
        raise RecipeError(f"--target: {target!r} is not built", hint=hint)
    if target == "onnx" and find_spec("onnx") is None:
        raise missing_extra("onnx", "onnx")
    for section in NOT_BUILT:
        if getattr(recipe, section) is not None:
            raise RecipeError(
                f"{section}: this stage is not built yet", hint=f"remove the section `{section}`"
            )
    if recipe.model is None:
        raise RecipeError("model: is missing", hint="write `model: NAME` at the top of the recipe")
    if target == "checkpoint" and (recipe.compress or recipe.recover):
        section = "compress" if recipe.compress else "recover"
        raise RecipeError(
            f"{section}: a checkpoint is written before anything is compressed",
            hint=f"remove the section `{section}`, or write --target gguf",
        )
    if target == "gguf" and recipe.slice is not None and recipe.slice.method == "per_block":
        raise RecipeError(
            "slice.method: no GGUF architecture has the shortcut matrices of a per_block model",
            hint="use method: global, or write --target checkpoint",
        )
    warnings: list[str] = []
    dense = open_checkpoint(recipe.model, base)
    recipe = _with_context(recipe, dense)
    if target == "gguf" and not dense.architecture.gguf:
        raise RecipeError(
            f"model: {dense.architecture.name} models cannot be written as GGUF",
            hint="--target checkpoint writes them, sliced",
        )
    warnings += dense.warnings()
    _ = dense.tokenizer, dense.generation_config()  # what is wrong with them is found here
    if target == "gguf":
        warnings += (*dense.gguf_warnings(), *vocabulary_check.check(dense))
    texts = _texts(recipe, dense, base)
    text = text_stage(recipe, dense, warnings)
    text_key = text.key if text else texts.get(SOURCE, "")
    narrow = None
    if recipe.slice is not None:
        narrow = sliced(recipe, dense, text_key, warnings)
    checkpoint = rewritten(narrow or dense, recipe.compress, warnings)
    calibrate = allocate = allocation = None
    fallbacks: tuple[Fallback, ...] = ()
    if recipe.compress is not None and recipe.compress.is_budget:
        calibrate = _calibration(recipe, checkpoint, text_key, warnings)
        tried = _tried(recipe, checkpoint, target)
        allocate = Stage("allocate", ALLOCATES, asdict(tried), (calibrate.key,))
        files = partial(files_size, target, recipe, checkpoint)
        allocation = spend(checkpoint, recipe.compress, tried, allocate, files)
        choices: Mapping[str, Choice] = allocation.choices
    else:
        choices, fallbacks = choose(checkpoint, recipe.compress, target)
        needs_text = any(format_of(c.format).block_size > 1 or c.rank for c in choices.values())
        if needs_text:
            calibrate = _calibration(recipe, checkpoint, text_key, warnings)
    if target == "onnx":
        warnings += [*_short_context(recipe, checkpoint), *_slow_formats(recipe, choices)]
    decompose = Stage(
        "decompose",
        DECOMPOSES,
        {
            "choices": {name: vars(choice) for name, choice in choices.items()},
            "damping": recipe.compress.damping if recipe.compress else [],
            "iterations": recipe.compress.iterations if recipe.compress else 0,
            "objective": recipe.calibrate.objective if calibrate else None,
        },
        (calibrate.key if calibrate else checkpoint.key,),
    )
    return Plan(
        recipe,
        target,
        base,
        texts,
        checkpoint,
        choices,
        fallbacks,
        Stage("check", CHECKS, {}, (dense.key,)),
        text if narrow or calibrate else None,
        narrow.stage if narrow else None,
        narrow.source_stage if narrow and narrow.source_stage is not narrow.stage else None,
        calibrate,
        allocate,
        allocation,
        decompose,
        _recovery(recipe, calibrate, decompose),
        tuple(warnings),
    )


def _with_context(recipe: Recipe, dense: Checkpoint) -> Recipe:
    """The recipe with a context to measure in that the model has; one that was asked for and is
    longer is refused."""
    options, most = recipe.export.measure, dense.dimensions.max_position_embeddings
    if options.context <= most:
        return recipe
    if "context" in options.model_fields_set and options.tokens:
        raise RecipeError(
            f"export.measure.context: {options.context} is more than the model's {most} positions",
            hint=f"write context: {most} or less",
        )
    export = recipe.export.model_copy(
        update={"measure": options.model_copy(update={"context": most})}
    )
    return recipe.model_copy(update={"export": export})


def _texts(recipe: Recipe, dense: Checkpoint, base: Path) -> dict[str, str]:
    """The sha256 of every text that is named, each held against what it is for."""
    found = {}
    calibrate, measure = recipe.calibrate, recipe.export.measure
    if calibrate.source != "self" and (recipe.compress or recipe.slice):
        needed = MIN_SEQUENCES * calibrate.sequence_length
        found[SOURCE] = check_text(source_path(calibrate.source, base), dense, needed)
    if measure.text is not None and measure.tokens:
        path = source_path(measure.text, base, MEASURED)
        found[MEASURED] = check_text(path, dense, measure.context, MEASURED)
    return found


def _short_context(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """That a graph will know fewer positions than its model, where nobody asked for that."""
    from edgepack.export.onnx import positions

    known, most = positions(checkpoint, None), checkpoint.dimensions.max_position_embeddings
    if recipe.export.onnx.context is not None or known == most:
        return []
    return [f"export.onnx.context: the graph will know {known} of the model's {most} positions"]


def _slow_formats(recipe: Recipe, choices: Mapping[str, Choice]) -> list[str]:
    """Formats that the runtimes of a profile have no fast kernels for."""
    name = recipe.export.onnx.profile
    unfit, found = PROFILES[name].unfit, []
    for form in sorted({choice.format for choice in choices.values()}):
        how = layout(format_of(form))
        reason = unfit.get(f"{how.bits} bits" if how else form)
        if reason:
            found.append(f"export.onnx.profile: {name}, but `{form}`: {reason}")
    return found


def _recovery(recipe: Recipe, calibrate: Stage | None, decompose: Stage) -> Stage | None:
    """The stage that distils the original into what was decomposed, on the calibration's text."""
    if recipe.recover is None:
        return None
    if calibrate is None:
        raise RecipeError(
            "recover: nothing is quantized, so there is nothing to recover",
            hint="add a section `compress`, or remove `recover`",
        )
    inputs = (decompose.key, calibrate.key)
    options = recipe.recover.model_dump() | choose_arithmetic()
    return Stage("recover", RECOVERS, options, inputs)


def _tried(recipe: Recipe, checkpoint: Checkpoint, target: str) -> Search:
    """What the stage has to try that measures what every choice would cost."""
    assert recipe.compress is not None
    if recipe.calibrate.objective != "model":
        raise RecipeError(
            f"calibrate.objective: errors of {recipe.calibrate.objective!r} cannot be compared "
            "between all weights, as a budget needs",
            hint="use `model` (the default)",
        )
    return search(checkpoint, recipe.compress, target)


def _calibration(
    recipe: Recipe, checkpoint: Checkpoint, text_key: str, warnings: list[str]
) -> Stage:
    """The calibrate stage; its text is an input like the model."""
    options = recipe.calibrate
    inputs = (checkpoint.key, text_key)
    train, _ = counts(options, checkpoint.original.dimensions)
    widest = max(checkpoint.dimensions.hidden_size, checkpoint.dimensions.intermediate_size)
    per_column = train * options.sequence_length / widest
    if per_column < 31:
        warnings.append(
            f"calibrate.tokens: {per_column:.0f} tokens per column of the widest weight; below 32 "
            "H overfits (held-out tokens still choose the damping)"
        )
    described = options.model_dump() | {"source": "self" if options.source == "self" else "file"}
    return Stage("calibrate", CALIBRATES, described, inputs)
