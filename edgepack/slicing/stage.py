"""The slice stage: a checkpoint in, the folder of a narrower one out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgepack.architectures.base import Architecture
from edgepack.calibration.sizes import DOUBLE, FLOAT
from edgepack.calibration.text import counts
from edgepack.calibration.text_stage import text_options, with_text
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.save import SHARD, is_saved, model_bytes
from edgepack.core.accelerator import CPU, keyed
from edgepack.core.executor import Executor
from edgepack.core.hadamard import paley_order
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.errors import RecipeError, while_doing
from edgepack.model.centered import center
from edgepack.model.places import kept_widths
from edgepack.model.sliced import Sliced, has_code
from edgepack.model.stream import TOKENS_AT_ONCE
from edgepack.planning.plan import READS, Plan, Text
from edgepack.recipe import sections
from edgepack.slicing.globally import slice_globally
from edgepack.slicing.per_block import slice_per_block

ONLY_TO_RESUME = ("x-*", "covariance-*", "basis-*")
"""Files that no finished folder has."""
OPTIONS = {"method", "covariance", "orientation", "seed", "slice_head"}
"""What a slice depends on beside its widths."""


@dataclass(frozen=True)
class Slice(Stage):
    """A Hugging Face folder with the narrower model; `widths` are the columns that are kept at
    every place of the residual stream, one number for the method ``global``."""

    original: Checkpoint
    slice: sections.Slice
    calibrate: sections.Calibrate
    widths: Sequence[int]
    text: Text
    device: torch.device = CPU

    name = "slice"
    code = ("edgepack.slicing.stage", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.original.key, self.text.key)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {
            **self._about,
            "widths": list(self.widths),
            "text": text_options(self.calibrate),
            **keyed(self.device),
        }

    @property
    def _about(self) -> dict[str, Any]:
        """What reports and `Sliced.source` say."""
        found = self.slice.model_dump(include=OPTIONS)
        return {**found, "widths": sorted(set(self.widths[:-1]))}

    @cached_property
    def model(self) -> Sliced:
        """What the folder holds once it is there; its names and shapes are known before."""
        if self.slice.method == "global":
            return Sliced.globally(self.original, self.widths[0], self, self._about)
        return Sliced.per_block(center(self.original), tuple(self.widths), self, self._about)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        if not is_saved(folder):
            method = slice_globally if self.slice.method == "global" else slice_per_block
            yield from method(self.model, self.slice, self.text.tokens, folder, self.device)
        for pattern in ONLY_TO_RESUME:
            for path in folder.glob(pattern):
                path.unlink()

    def facts(self) -> dict[str, Any]:
        """Number of weights before and after, by part of the model."""
        return {"slice": self.model.weights_by_part()}

    def disk(self) -> Disk:
        """The narrower model, and hidden states of two blocks while it is made."""
        kept, d, o = model_bytes(self.model), self.original.dimensions, self.calibrate
        states = 2 * sum(counts(o, d)) * o.sequence_length * d.hidden_size
        return Disk(kept + FLOAT * states, kept)

    def memory(self) -> int:
        """C with its eigenvectors, a block, activations of a batch; then a shard, and the
        embeddings while they are rotated."""
        d = self.original.dimensions
        tokens = max(TOKENS_AT_ONCE, self.calibrate.sequence_length)
        activations = tokens * (6 * d.hidden_size + 4 * d.intermediate_size)
        block = sum(s.numel for s in self.original.specs.values() if s.block == 0)
        sweep = 6 * DOUBLE * d.hidden_size**2 + FLOAT * (2 * block + activations)
        return max(sweep, SHARD + 3 * FLOAT * d.vocab_size * d.hidden_size)


def join(plan: Plan) -> Plan:
    """The plan with the narrower model, where the recipe asks for one."""
    options, original = plan.recipe.slice, plan.original
    if options is None:
        return plan
    plan = with_text(plan)
    assert plan.text is not None
    _refuse(original.architecture, options, for_transformers=not plan.target.packs)
    widths = kept_widths(original, options)
    if options.orientation == "hadamard":
        with while_doing("slice.orientation"):
            for width in set(widths):
                paley_order(width)
    calibrate, text = plan.recipe.calibrate, plan.text
    stage = Slice(original, options, calibrate, widths, text, plan.device)
    return replace(plan, model=stage.model).adding(stage, notes=_growth(stage.model, options))


METHODS = ("global", "per_block")


def why_not(family: Architecture, method: str) -> str | None:
    """Why models of a family cannot be sliced by a method; None if they can."""
    if not family.rotates_freely:
        return f"{family.name} models have norms behind attention and MLP, which no rotation passes"
    if family.router is not None:
        return f"{family.name} models have experts, whose weights are not sliced"
    if family.kind_roles:
        kinds = ", ".join(family.kind_roles)
        return f"{family.name} models have blocks of several kinds ({kinds})"
    if method == "global" and family.square_q and "attn_qkv" in family.block:
        return f"llama.cpp takes q of {family.name} models to be as wide as the stream"
    if method == "global" and any(number.rule == "root" for number in family.numbers.values()):
        return f"{family.name} models scale embeddings by the root of the width, which would change"
    if method == "global" and not family.gguf:
        return f"{family.name} models have LayerNorms, and would be of no family without them"
    return None


def _refuse(family: Architecture, options: sections.Slice, *, for_transformers: bool) -> None:
    """A method that a family cannot be sliced by."""
    if reason := why_not(family, options.method):
        others = [method for method in METHODS if why_not(family, method) is None]
        place = "slice.method" if others else "slice"
        hint = f"use method: {others[0]}" if others else "remove slice from the recipe"
        raise RecipeError(f"{place}: {reason}", hint=hint)
    if options.method == "per_block" and for_transformers and not has_code(family):
        raise RecipeError(
            f"slice.method: transformers cannot load {family.name} models with shortcut matrices",
            hint="write --target onnx, which can hold them",
        )


def _growth(model: Sliced, options: sections.Slice) -> list[str]:
    """That the model would grow, which is refused unless the recipe allows it."""
    before, after = (sum(counts) for counts in zip(*model.weights_by_part().values(), strict=True))
    if after <= before:
        return []
    reasons = {
        "the head can no longer be the embeddings": model.original.dimensions.tie_word_embeddings,
        "every half of a block has a shortcut matrix": options.method == "per_block",
    }
    why = " and ".join(reason for reason, holds in reasons.items() if holds)
    message = (
        f"slice: the model would grow to {after / 1e6:.1f} M weights from {before / 1e6:.1f} M, "
        f"because {why}"
    )
    if not options.allow_growth:
        hint = "keep fewer columns, or set slice.allow_growth: true"
        raise RecipeError(message, hint=hint)
    return [message]
