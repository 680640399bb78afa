"""Recipe → plan: headers are read, never weights, and every error a user can make is found here."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepack import plugins
from edgepack.cache import Stage
from edgepack.calibration import self_text
from edgepack.calibration.text import counts, source_path
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.checkpoint.digests import sha256
from edgepack.decoder import Decoder
from edgepack.decompose.low_rank import factor_format
from edgepack.decompose.stage import Choice
from edgepack.errors import RecipeError
from edgepack.formats._base import Format
from edgepack.recipe import Compress, Recipe, WeightOptions
from edgepack.weights import WeightSpec

TARGETS = ("gguf",)
NOT_BUILT = ("merge", "slice", "recover")
"""Sections of the recipe whose stages do not exist yet."""

PARTS = {"token_embd": "embeddings", "output": "head"}
"""Role → part of the model in the ledger; other matrices are the blocks'."""

CALIBRATE_VERSION = 1
DECOMPOSE_VERSION = 2


@dataclass(frozen=True)
class Fallback:
    """A format that was asked for and does not fit, and the one that stands in for it."""

    name: str
    asked: str
    given: str
    columns: int


@dataclass(frozen=True)
class Plan:
    """Everything `build` will do, and what will come of it."""

    recipe: Recipe
    base: Path
    checkpoint: Checkpoint
    choices: Mapping[str, Choice]
    fallbacks: tuple[Fallback, ...]
    calibrate: Stage | None
    decompose: Stage
    warnings: tuple[str, ...]

    @property
    def decoder(self) -> Decoder:
        """The model, streamed."""
        return Decoder(self.checkpoint)

    @property
    def objective(self) -> str:
        """The recipe's; ``none`` where nothing is quantized."""
        return self.recipe.calibrate.objective if self.calibrate else "none"

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of tensors in the files to come: blocks, embeddings, head, norms, factors."""
        sizes = dict.fromkeys(("blocks", "embeddings", "head", "norms and biases", "factors"), 0)
        for spec in self.checkpoint.specs.values():
            choice = self.choices.get(spec.name)
            if choice is None:
                sizes["norms and biases"] += 4 * spec.numel
                continue
            sizes[PARTS.get(spec.role, "blocks")] += _format(choice.format).nbytes(spec.shape)
            sizes["factors"] += _factor_bytes(spec, choice)
        return {part: size for part, size in sizes.items() if size}

    def bits_per_weight(self, *, blocks_only: bool) -> float:
        """Bits stored (Q, scales, L and R) per element of the matrices."""
        bits = count = 0
        for name, choice in self.choices.items():
            spec = self.checkpoint.specs[name]
            if blocks_only and spec.block is None:
                continue
            bits += 8 * (_format(choice.format).nbytes(spec.shape) + _factor_bytes(spec, choice))
            count += spec.numel
        return bits / count


def plan(recipe: Recipe, target: str, base: Path) -> Plan:
    """Check a recipe against its model and this machine; `base` is the recipe's folder."""
    if target not in TARGETS:
        hint = "choose one of: " + ", ".join(TARGETS)
        raise RecipeError(f"--target: {target!r} is not built", hint=hint)
    for section in NOT_BUILT:
        if getattr(recipe, section) is not None:
            raise RecipeError(
                f"{section}: this stage is not built yet", hint=f"remove the section `{section}`"
            )
    if recipe.model is None:
        raise RecipeError("model: is missing", hint="write `model: NAME` at the top of the recipe")
    checkpoint = open_checkpoint(recipe.model, base)
    choices, fallbacks = _choose(checkpoint, recipe.compress)
    needs_text = any(_format(c.format).block_size > 1 or c.rank for c in choices.values())
    warnings: list[str] = []
    calibrate = _calibration(recipe, checkpoint, base, warnings) if needs_text else None
    text = recipe.export.measure.text
    if text is not None and recipe.export.measure.tokens:
        source_path(text, base, "export.measure.text")
    decompose = Stage(
        "decompose",
        DECOMPOSE_VERSION,
        {
            "choices": {name: vars(choice) for name, choice in choices.items()},
            "damping": recipe.compress.damping if recipe.compress else [],
            "iterations": recipe.compress.iterations if recipe.compress else 0,
            "objective": recipe.calibrate.objective if calibrate else None,
        },
        (calibrate.key if calibrate else checkpoint.key,),
    )
    return Plan(recipe, base, checkpoint, choices, fallbacks, calibrate, decompose, tuple(warnings))


def _calibration(recipe: Recipe, checkpoint: Checkpoint, base: Path, warnings: list[str]) -> Stage:
    """The calibrate stage; its text is an input like the model."""
    options = recipe.calibrate
    inputs = [checkpoint.key]
    if options.source == "self":
        decoder = Decoder(checkpoint)
        if not self_text.fits_in_memory(decoder):
            warnings.append(
                "calibrate.source: self re-reads this model from disk at every token, because it "
                "does not fit in memory; a text file is much faster"
            )
    else:
        inputs.append(sha256(source_path(options.source, base)))
    train, _ = counts(options, checkpoint.dimensions)
    widest = max(checkpoint.dimensions.hidden_size, checkpoint.dimensions.intermediate_size)
    per_column = train * options.sequence_length / widest
    if per_column < 31:
        warnings.append(
            f"calibrate.tokens: {per_column:.0f} tokens per column of the widest weight; below 32 "
            "H overfits (held-out tokens still choose the damping)"
        )
    described = options.model_dump() | {"source": "self" if options.source == "self" else "file"}
    return Stage("calibrate", CALIBRATE_VERSION, described, tuple(inputs))


def _choose(
    checkpoint: Checkpoint, compress: Compress | None
) -> tuple[dict[str, Choice], tuple[Fallback, ...]]:
    """The format and rank of every matrix, and the substitutions that were asked for."""
    choices, fallbacks = {}, []
    for name, spec in checkpoint.specs.items():
        if len(spec.shape) < 2:
            continue
        choice, fallback = _choice(spec, compress)
        choices[name] = choice
        if fallback:
            fallbacks.append(fallback)
    for pattern in compress.overrides if compress else {}:
        if not any(_matches(pattern, name) for name in choices):
            raise RecipeError(
                f"compress.overrides: {pattern!r} matches no weight",
                hint="weights are called " + ", ".join(sorted(choices)[-3:]),
            )
    return choices, tuple(fallbacks)


def _choice(spec: WeightSpec, compress: Compress | None) -> tuple[Choice, Fallback | None]:
    if compress is None:
        return Choice("f16"), None
    wanted, place = _options(spec, compress)
    assert wanted.format is not None
    form: Format = _known(wanted.format, place)
    fallback = None
    if not form.fits(spec.shape[1]):
        fitting = [f for f in map(_format, plugins.names("formats")) if f.fits(spec.shape[1])]
        if compress.fallback == "refuse":
            names = ", ".join(f.name for f in sorted(fitting, key=lambda f: f.bits_per_weight))
            raise RecipeError(
                f"{place}: rows of {spec.name} have {spec.shape[1]} columns, not a multiple of "
                f"the {form.block_size} of {form.name}",
                hint=f"formats that fit: {names}; or set compress.fallback: nearest",
            )
        nearest = min(fitting, key=lambda f: abs(f.bits_per_weight - form.bits_per_weight))
        fallback = Fallback(spec.name, form.name, nearest.name, spec.shape[1])
        form = nearest
    return _ranked(spec, form, wanted, place), fallback


def _options(spec: WeightSpec, compress: Compress) -> tuple[WeightOptions, str]:
    """The options of a weight after all overrides, and the recipe's key for its format."""
    place = "compress.format"
    found = {"format": compress.format, "rank": compress.rank, "factors": compress.factors}
    if spec.block is None:
        role = "head" if spec.role == "output" and compress.head else "embeddings"
        found |= {"format": getattr(compress, role), "rank": 0}
        place = f"compress.{role}"
    for pattern, options in compress.overrides.items():
        if _matches(pattern, spec.name):
            found |= options.model_dump(exclude_none=True)
            place = f"compress.overrides.{pattern}"
    return WeightOptions.model_validate(found), place


def _ranked(spec: WeightSpec, form: Format, wanted: WeightOptions, place: str) -> Choice:
    """Check a rank and settle the formats its factors really get."""
    rank, factors = wanted.rank or 0, wanted.factors or "f16"
    if not rank:
        return Choice(form.name)
    if spec.role == "token_embd":
        raise RecipeError(
            f"{place}: llama.cpp has no place for factors of {spec.name}", hint="give it rank 0"
        )
    if rank >= min(spec.shape):
        raise RecipeError(
            f"{place}: rank {rank} is not below {min(spec.shape)}, the smaller side of {spec.name}",
            hint="a rank of 8 to 128 is usual",
        )
    L, R = factor_format(factors, rank), factor_format(factors, spec.shape[1])
    return Choice(form.name, rank, L, R, factors)


def _known(name: str, place: str) -> Format:
    try:
        return _format(name)
    except RecipeError as error:
        raise RecipeError(f"{place}: there is no format {name!r}", hint=error.hint) from None


def _format(name: str) -> Format:
    found: Format = plugins.find("formats", name)
    return found


def _factor_bytes(spec: WeightSpec, choice: Choice) -> int:
    if not choice.rank or choice.L is None or choice.R is None:
        return 0
    rows, columns = spec.shape
    return _format(choice.L).nbytes((rows, choice.rank)) + _format(choice.R).nbytes(
        (choice.rank, columns)
    )


def _matches(pattern: str, name: str) -> bool:
    """Globs may leave out the ``.weight`` at the end."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(
        name.removesuffix(".weight"), pattern
    )
