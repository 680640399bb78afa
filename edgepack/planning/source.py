"""Which model the stages after it see: the one that was found, sliced, rotated, padded."""

from __future__ import annotations

from edgepack.calibration.self_text import template_warnings
from edgepack.checkpoint import Checkpoint
from edgepack.core.errors import RecipeError, while_doing
from edgepack.core.hadamard import paley_order
from edgepack.core.stage import Stage
from edgepack.model.centered import centered
from edgepack.model.decoder import Decoder, fits_in_memory
from edgepack.model.padding import Padded, pad
from edgepack.model.places import kept_widths
from edgepack.model.rotation import Rotated
from edgepack.model.sliced import Sliced
from edgepack.recipe.sections import Compress, Recipe, Slice
from edgepack.recover.stage import choose_arithmetic

READS = ("edgepack.checkpoint", "edgepack.architectures")
"""The code that reads models."""
WRITES_TEXT = ("edgepack.calibration.text", *READS)
SLICES = ("edgepack.slicing.stage", *READS)
FINETUNES = ("edgepack.recover.sliced", "edgepack.formats.f16")
"""The code that the results of stages depend on."""

OF_TEXT = ("tokens", "held_out", "sequence_length", "seed")
"""Options of `calibrate` that its tokens depend on."""


def text_stage(recipe: Recipe, dense: Checkpoint, warnings: list[str]) -> Stage | None:
    """Where the model's own text is kept; None for text from a file, which needs no keeping."""
    if recipe.calibrate.source != "self":
        return None
    if (recipe.slice or recipe.compress) and not dense.architecture.gguf:
        raise RecipeError(
            f"calibrate.source: {dense.architecture.name} models do not write their own text here",
            hint="name a text file",
        )
    if recipe.slice or recipe.compress:
        warnings += template_warnings(dense.tokenizer)
    if not fits_in_memory(Decoder(dense)):
        warnings.append(
            "calibrate.source: self re-reads this model from disk at every token, because it "
            "does not fit in memory; a text file is much faster"
        )
    options = {key: getattr(recipe.calibrate, key) for key in OF_TEXT}
    return Stage("text", WRITES_TEXT, options, (dense.key,))


def sliced(recipe: Recipe, dense: Checkpoint, text: str, warnings: list[str]) -> Sliced | None:
    """The narrower model that a recipe asks for, which is yet to be made; `text` is the key of what
    it is made on."""
    options = recipe.slice
    if options is None:
        return None
    if options.method == "global" and not dense.architecture.gguf:
        raise RecipeError(
            f"slice.method: a {dense.architecture.name} model has LayerNorms, and would be no "
            f"{dense.architecture.name} model without them",
            hint="use method: per_block",
        )
    widths = kept_widths(dense, options)
    if options.orientation == "hadamard":
        with while_doing("slice.orientation"):
            for width in set(widths):
                paley_order(width)
    used = {"method", "covariance", "orientation", "seed", "slice_head"}
    about = {**options.model_dump(include=used), "widths": sorted(set(widths[:-1]))}
    of_text = {key: getattr(recipe.calibrate, key) for key in OF_TEXT}
    described = {**about, "widths": list(widths), "text": of_text}
    stage = Stage("slice", SLICES, described, (dense.key, text))
    if options.method == "global":
        made = Sliced.globally(dense, widths[0], stage, about)
    else:
        made = Sliced.per_block(centered(dense), widths, stage, about)
    _refuse_growth(made, options, warnings)
    if options.recover is None:
        return made
    how = options.recover.model_dump() | choose_arithmetic()
    rft = Stage("rft", FINETUNES, how, (stage.key, dense.key, text))
    return made.taken_from(rft)


def _refuse_growth(made: Sliced, options: Slice, warnings: list[str]) -> None:
    before, after = (sum(counts) for counts in zip(*made.weights_by_part().values(), strict=True))
    if after <= before:
        return
    reasons = {
        "the head can no longer be the embeddings": made.original.dimensions.tie_word_embeddings,
        "every half of a block has a shortcut matrix": options.method == "per_block",
    }
    why = " and ".join(reason for reason, holds in reasons.items() if holds)
    message = (
        f"the model would grow to {after / 1e6:.1f} M weights from {before / 1e6:.1f} M, "
        f"because {why}"
    )
    if not options.allow_growth:
        hint = "keep fewer columns, or set slice.allow_growth: true"
        raise RecipeError(f"slice: {message}", hint=hint)
    warnings.append(f"slice: {message}")


def rewritten(checkpoint: Checkpoint, compress: Compress | None, warnings: list[str]) -> Checkpoint:
    """The checkpoint after the exact changes that the recipe wants."""
    if compress is not None and compress.rotate == "hadamard":
        checkpoint = Rotated(checkpoint)
        if not checkpoint.stream:
            warnings.append(
                "compress.rotate: the head is tied to the embeddings and cannot take the final "
                "norm's gains, so that only the values of the heads are rotated"
            )
    if compress is not None and compress.pad_width is not None:
        checkpoint = pad(checkpoint, compress.pad_width)
        if isinstance(checkpoint, Padded):
            warnings.append(f"compress.pad_width: {checkpoint.describe()}")
    return checkpoint
