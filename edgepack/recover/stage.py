"""The recover stage: what was decomposed, brought closer to the original at the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.calibration.sizes import FLOAT, matrices_by_block
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.text import counts
from edgepack.calibration.text_stage import FileText, WriteText, add_text, text_options
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.decompose.stage import Decompose
from edgepack.errors import RecipeError
from edgepack.model.decoder import Decoder
from edgepack.planning.plan import Plan
from edgepack.recipe import training
from edgepack.recipe.texts import DISTILLED, SOURCE
from edgepack.recover import distil
from edgepack.recover.distance import TOKENS_AT_ONCE
from edgepack.recover.training import Settings

SCALED = 32
"""Weights that share a scale, at the fewest."""


@dataclass(frozen=True)
class Recover(Stage):
    """The files of the decompose stage with trained scales, factors and norms; codes stay. Results
    depend on the `arithmetic` of `distil.choose_arithmetic`."""

    model: Checkpoint
    original: Checkpoint
    decomposed: Decompose
    calibration: Calibrate
    recover: training.Recover
    arithmetic: Mapping[str, str]
    device: torch.device = CPU
    text: FileText | WriteText | None = None
    """A text of its own; None: that of the calibration."""

    name = "recover"
    code = ("edgepack.recover.distil", "edgepack.recover.stage", "edgepack.formats")

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        own = () if self.text is None else (self.text.key,)
        return (self.decomposed.key, self.calibration.key, *own)

    def options(self) -> dict[str, Any]:  # noqa: D102
        own = self.recover.model_dump(exclude={"source", "tokens_total"})
        if self.text is not None:
            own |= text_options(self.text.calibrate)
        return own | dict(self.arithmetic)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield from distil.recover(
            Decoder(self.model, device=self.device),
            Decoder(self.original, device=self.device),
            self.decomposed.folder,
            (self.text or self.calibration.text).tokens,
            self._settings(),
            folder,
            self.arithmetic,
        )

    def _settings(self) -> Settings:
        options, rate = self.recover, self.recover.learning_rate
        return Settings(
            steps=options.steps,
            tokens=options.tokens,
            train=tuple(options.train),
            scales=rate,
            factors=3 * rate,  # L and R are far from their optimum, scales are near
            norms=rate,
            evaluate_every=options.evaluate_every,
            patience=options.patience,
            seed=options.seed,
        )

    @property
    def norms(self) -> dict[str, Tensor]:
        """Norms and biases that it trained."""
        return distil.read_norms(self.folder)

    def facts(self) -> dict[str, Any]:
        """Held-out KL at the start and at its best, and all in between."""
        if not self.is_done:
            return {}
        return {"recovered": distil.about(distil.read_report(self.folder))}

    def disk(self) -> Disk:
        """The files of decomposed weights anew; while it trains, the original's last hidden states,
        embedded tokens, and what is trained."""
        kept, d = self.decomposed.disk().kept, self.model.dimensions
        options = self.calibration.calibrate if self.text is None else self.text.calibrate
        sequences = sum(counts(options, self.original.dimensions))
        states = 2 * sequences * options.sequence_length * d.hidden_size
        return Disk(kept + FLOAT * states + kept // 2, kept)

    def memory(self) -> int:
        """Codes, what is trained with its gradients and moments, a step's block inputs, heads."""
        d, specs = self.model.dimensions, self.model.specs
        elements = sum(s.numel for matrices in matrices_by_block(self.model) for s in matrices)
        formats = self.decomposed.chosen.formats.items()
        factors = sum(fmt.rank * sum(specs[name].shape) for name, fmt in formats)
        trained = elements // SCALED + factors
        states = d.num_hidden_layers * self.recover.tokens * d.hidden_size
        logits = 10 * TOKENS_AT_ONCE * d.vocab_size
        heads = 10 * d.vocab_size * d.hidden_size
        block = 6 * elements // d.num_hidden_layers
        codes = min(elements, distil.IN_MEMORY)
        return codes + 24 * trained + FLOAT * (states + logits + block) + heads


def join(plan: Plan) -> Plan:
    """The plan with what was decomposed recovered, where the recipe asks for it."""
    options = plan.recipe.recover
    if options is None:
        return plan
    decomposed, calibration = plan.find(Decompose), plan.find(Calibrate)
    if decomposed is None or calibration is None:
        raise RecipeError(
            "recover: nothing is quantized, so there is nothing to recover",
            hint="add a section `compress`, or remove `recover`",
        )
    plan, text = _own_text(plan, options)
    models, arithmetic = (plan.model, plan.original), distil.choose_arithmetic(plan.device)
    stage = Recover(*models, decomposed, calibration, options, arithmetic, plan.device, text)
    return plan.adding(stage)


def _own_text(plan: Plan, options: training.Recover) -> tuple[Plan, FileText | WriteText | None]:
    """The text that the recipe names for recovery, and the plan with what makes it."""
    if options.source is None and options.tokens_total is None:
        return plan, None
    calibrate = plan.recipe.calibrate
    given = {"source": options.source, "tokens": options.tokens_total}
    asked = calibrate.model_copy(update={k: v for k, v in given.items() if v is not None})
    key = SOURCE if options.source is None else DISTILLED
    return add_text(plan, asked, key, "for recover")
