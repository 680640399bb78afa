"""The stage text, and calibration text from a file: tokens, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgepack.calibration import self_text
from edgepack.calibration.sizes import FLOAT, bytes_outside, matrices_by_block
from edgepack.calibration.text import MIN_SEQUENCES, check, counts, read_tokens, write_tokens
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, keyed, product_type
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps, finish
from edgepack.core.stage import Stage
from edgepack.errors import RecipeError
from edgepack.model.decoder import Decoder, fits_in_memory
from edgepack.model.stream import Tokens
from edgepack.planning.plan import READS, Plan
from edgepack.recipe import sections
from edgepack.recipe.texts import SOURCE, source_path

OF_TEXT = ("tokens", "held_out", "sequence_length", "seed")
"""Options of `calibrate` that its tokens depend on."""


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
    device: torch.device = CPU
    purpose: str = ""
    """What it is for, where a plan has several texts."""

    name = "text"
    code = ("edgepack.calibration.text", *READS)

    @property
    def label(self) -> str:  # noqa: D102
        return f"{self.name} {self.purpose}".strip()

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.original.key,)

    def options(self) -> dict[str, Any]:  # noqa: D102
        kind = str(product_type(self.device))
        return text_options(self.calibrate) | {"arithmetic": kind} | keyed(self.device)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        decoder = Decoder(self.original, device=self.device)
        yield from write_tokens(decoder, self.calibrate, folder)

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


def text_options(calibrate: sections.Calibrate) -> dict[str, Any]:
    """The part of a recipe's section that calibration tokens depend on."""
    return {key: getattr(calibrate, key) for key in OF_TEXT}


def with_text(plan: Plan) -> Plan:
    """The plan with a calibration text, for a stage that needs one."""
    if plan.text is not None:
        return plan
    plan, text = add_text(plan, plan.recipe.calibrate)
    return replace(plan, text=text)


def add_text(
    plan: Plan, options: sections.Calibrate, key: str = SOURCE, purpose: str = ""
) -> tuple[Plan, FileText | WriteText]:
    """The text that `options` ask for, named at `key` of the recipe, and the plan with what makes
    it; a second text of a plan has another `purpose`."""
    original = plan.original
    if options.source != "self":
        path = source_path(options.source, plan.base, key)
        sha256 = check(path, original, MIN_SEQUENCES * options.sequence_length, key)
        text = FileText(original, options, path, sha256)
        return replace(plan, texts={**plan.texts, key: sha256}), text
    if not original.architecture.gguf:
        raise RecipeError(
            f"{key}: {original.architecture.name} models do not write their own text here",
            hint="name a text file",
        )
    notes = self_text.template_warnings(original.tokenizer)
    if not fits_in_memory(Decoder(original)):
        notes.append(
            f"{key}: self re-reads this model from disk at every token, because it "
            "does not fit in memory; a text file is much faster"
        )
    stage = WriteText(original, options, plan.device, purpose)
    return plan.adding(stage, notes=[note for note in notes if note not in plan.notes]), stage
