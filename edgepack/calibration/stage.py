"""The stages text and calibrate: tokens, and H of every weight on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack import formats
from edgepack.calibration import experts, self_text
from edgepack.calibration.sweep import LABELS_AT_ONCE, guided_hessians
from edgepack.calibration.text import MIN_SEQUENCES, check, counts, read_tokens, write_tokens
from edgepack.checkpoint import Checkpoint
from edgepack.core.executor import Executor
from edgepack.core.hardware import available_memory
from edgepack.core.progress import Steps, finish
from edgepack.core.stage import Stage
from edgepack.core.weight_files import read_about
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.errors import CalibrationError, RecipeError
from edgepack.model.carried import extra_floats
from edgepack.model.decoder import Decoder, fits_in_memory
from edgepack.model.gated_delta import kept_floats
from edgepack.model.stream import TOKENS_AT_ONCE, Tokens
from edgepack.planning.formats import options_of
from edgepack.planning.plan import READS, Plan, Text
from edgepack.recipe import sections
from edgepack.recipe.texts import SOURCE, source_path

OF_TEXT = ("tokens", "held_out", "sequence_length", "seed")
"""Options of `calibrate` that its tokens depend on."""
ENOUGH = 31
"""Tokens per column of the widest weight below which H overfits; 32 are the default."""
FLOAT, DOUBLE = 4, 8


@dataclass(frozen=True)
class FileText:
    """Calibration text from a file, which is held against its sha256 when it is read again."""

    original: Checkpoint
    calibrate: sections.Calibrate
    path: Path
    sha256: str
    only_answers: bool = False
    """Whether only the labels of answers have gradients, where rows are conversations."""

    @property
    def key(self) -> str:
        """Of what the tokens and their labels depend on."""
        return f"{self.sha256}:answers" if self.only_answers else self.sha256

    @cached_property
    def tokens(self) -> Tokens:
        """Tokenized when they are first asked for."""
        return read_tokens(
            self.original,
            self.calibrate,
            self.path,
            self.sha256,
            only_answers=self.only_answers,
        )


@dataclass(frozen=True)
class WriteText(Stage):
    """The model writes its own calibration text; its tokens are kept, batch by batch."""

    original: Checkpoint
    calibrate: sections.Calibrate

    name = "text"
    code = ("edgepack.calibration.text", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.original.key,)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return text_options(self.calibrate)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield from write_tokens(Decoder(self.original), self.calibrate, folder)

    @cached_property
    def tokens(self) -> Tokens:
        """Those of the finished stage."""
        return finish(write_tokens(Decoder(self.original), self.calibrate, self.folder))

    def memory(self) -> int:
        """Weights (all, if they fit), keys and values, probabilities."""
        decoder, d, options = Decoder(self.original), self.original.dimensions, self.calibrate
        length = options.sequence_length
        batch = len(self_text.batches(decoder, sum(counts(options, d)), length)[0])
        cache = 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim * length
        blocks = [sum(s.numel for s in specs) for specs in matrices_by_block(self.original)]
        weights = sum(blocks) if fits_in_memory(decoder) else max(blocks)
        return bytes_outside(self.original) + FLOAT * (weights + batch * (cache + 5 * d.vocab_size))


@dataclass(frozen=True)
class Calibrate(Stage):
    """H of every weight; for the objective ``layer`` there is nothing to keep, since every block
    is calibrated on what the packed blocks before it pass on."""

    model: Checkpoint
    text: Text
    calibrate: sections.Calibrate

    name = "calibrate"
    code = ("edgepack.calibration.sweep", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.model.key, self.text.key)

    def options(self) -> dict[str, Any]:  # noqa: D102
        source = "self" if self.calibrate.source == "self" else "file"
        return self.calibrate.model_dump() | {"source": source}

    @property
    def objective(self) -> str:
        """What errors are weighted by."""
        return self.calibrate.objective

    @property
    def hessians(self) -> Path | None:
        """The folder of H; None for the objective ``layer``."""
        return None if self.objective == "layer" else self.folder

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        if self.objective == "layer":
            return
        self._refuse_too_large()
        yield from guided_hessians(
            Decoder(self.model),
            self.text.tokens,
            folder,
            self.calibrate.seed,
            output_side=self.objective == "model",
        )

    def _refuse_too_large(self) -> None:
        """H of all experts of a block is in memory at once, which no disk makes up for."""
        needed, there = self.memory(), available_memory()
        if self.model.architecture.router is not None and needed > there:
            raise CalibrationError(
                f"calibrate: H of all experts of a block takes {needed / 1e9:.1f} GB of memory, "
                f"and {there / 1e9:.1f} GB are free",
                hint="calibrate.objective: guided takes less; or run it on a machine with more",
            )

    def facts(self) -> dict[str, Any]:
        """How many experts of all blocks were met by few tokens."""
        if self.model.architecture.router is None or self.hessians is None or not self.is_done:
            return {}
        blocks = range(self.model.dimensions.num_hidden_layers)
        return {"experts": experts.summed([read_about(self.folder / str(i)) for i in blocks])}

    def warnings(self) -> list[str]:
        """That many experts were met by few tokens."""
        found = self.facts().get("experts", {})
        if not found.get("few_tokens"):
            return []
        return [
            f"calibrate.tokens: {found['few_tokens']} of {found['experts']} experts were met by "
            f"fewer than {experts.FEW} tokens per column, {found['no_tokens']} by none; their H is "
            "drawn towards that of all experts of the block"
        ]

    def memory(self) -> int:
        """A block with its Hessians in float64 and the activations of a batch with their gradients,
        or the head with the logits of a few tokens."""
        d = self.model.dimensions
        tokens = max(TOKENS_AT_ONCE, self.calibrate.sequence_length)
        heads = d.num_attention_heads * d.head_dim
        inside = 6 * heads + 8 * d.intermediate_size + 2 * kept_floats(d) + extra_floats(d)
        activations = tokens * (10 * d.hidden_size + inside)
        blocks = list(matrices_by_block(self.model))
        weights = max(sum(s.numel for s in specs) for specs in blocks)
        sides = slice(0, 2) if self.objective == "model" else slice(1, 2)
        moments = max(sum(n**2 for s in specs for n in s.shape[sides]) for specs in blocks)
        sweep = FLOAT * (weights + activations) + 2 * DOUBLE * moments
        return max(sweep, bytes_outside(self.model) + FLOAT * 5 * LABELS_AT_ONCE * d.vocab_size)


def text_options(calibrate: sections.Calibrate) -> dict[str, Any]:
    """The part of a recipe's section that calibration tokens depend on."""
    return {key: getattr(calibrate, key) for key in OF_TEXT}


def matrices_by_block(model: Checkpoint) -> Iterator[list[WeightSpec]]:
    """The matrices of every block."""
    blocks: dict[int, list[WeightSpec]] = {}
    for spec in model.specs.values():
        if spec.block is not None and spec.is_matrix:
            blocks.setdefault(spec.block, []).append(spec)
    yield from blocks.values()


def bytes_outside(model: Checkpoint) -> int:
    """Bytes of embedding and head as float32."""
    return FLOAT * sum(s.numel for s in model.specs.values() if s.block is None)


def with_text(plan: Plan) -> Plan:
    """The plan with a calibration text, for a stage that needs one."""
    if plan.text is not None:
        return plan
    calibrate, original = plan.recipe.calibrate, plan.original
    if calibrate.source != "self":
        path = source_path(calibrate.source, plan.base)
        sha256 = check(path, original, MIN_SEQUENCES * calibrate.sequence_length)
        text = FileText(original, calibrate, path, sha256)
        return replace(plan, text=text, texts={**plan.texts, SOURCE: sha256})
    if not original.architecture.gguf:
        raise RecipeError(
            f"calibrate.source: {original.architecture.name} models do not write their own text "
            "here",
            hint="name a text file",
        )
    notes = self_text.template_warnings(original.tokenizer)
    if not fits_in_memory(Decoder(original)):
        notes.append(
            "calibrate.source: self re-reads this model from disk at every token, because it "
            "does not fit in memory; a text file is much faster"
        )
    stage = WriteText(original, calibrate)
    return replace(plan, text=stage).adding(stage, notes=notes)


def join(plan: Plan) -> Plan:
    """The plan with H, where a weight is rounded in blocks or gets factors."""
    compress, model = plan.recipe.compress, plan.model
    budget = compress is not None and compress.is_budget
    rounded = _rounded(plan)
    if not budget and all(formats.get(f.Q).block_size == 1 and not f.rank for f in rounded):
        return plan
    plan = with_text(plan)
    assert plan.text is not None
    return plan.adding(
        Calibrate(model, plan.text, plan.recipe.calibrate), notes=_too_few_tokens(plan)
    )


def _rounded(plan: Plan) -> list[WeightFormat]:
    """The formats of weights that may be rounded: where the recipe demands exact ones, of those
    alone that it makes an exception of."""
    compress, chosen = plan.recipe.compress, plan.formats
    if compress is None or compress.exact != "demand":
        return list(chosen.values())
    specs = plan.model.specs
    return [f for name, f in chosen.items() if options_of(specs[name], compress)[0].format]


def _too_few_tokens(plan: Plan) -> list[str]:
    options, d = plan.recipe.calibrate, plan.model.dimensions
    train, _ = counts(options, plan.original.dimensions)
    widest = max(d.hidden_size, d.intermediate_size)
    per_column = train * options.sequence_length / widest
    if per_column >= ENOUGH:
        return []
    return [
        f"calibrate.tokens: {per_column:.0f} tokens per column of the widest weight; below 32 "
        "H overfits (held-out tokens still choose the damping)"
    ]
