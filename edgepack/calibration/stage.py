"""The stage calibrate: H of every weight on the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgepack import formats
from edgepack.calibration import experts
from edgepack.calibration.sizes import Sizes
from edgepack.calibration.sweep import Then, guided_hessians, keep
from edgepack.calibration.text import counts
from edgepack.calibration.text_stage import with_text
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, keyed, product_type
from edgepack.core.disk import free_space
from edgepack.core.executor import Executor
from edgepack.core.hardware import available_memory, working_memory
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.tables import format_size
from edgepack.core.weights import WeightFormat
from edgepack.errors import CalibrationError, RecipeError
from edgepack.model.decoder import Decoder
from edgepack.planning.formats import options_of
from edgepack.planning.plan import PROCESS, READS, Plan, Text, rotation_bytes
from edgepack.recipe import sections

ENOUGH = 31
"""Tokens per column of the widest weight below which H overfits; 32 are the default."""


@dataclass(frozen=True)
class Calibrate(Stage):
    """H of every weight; for the objective ``layer`` there is nothing to keep, since every block
    is calibrated on what the packed blocks before it pass on. If H is not `kept`, nothing runs
    here: the stages that need H have it made (`streamed.stream`)."""

    model: Checkpoint
    text: Text
    calibrate: sections.Calibrate
    device: torch.device = CPU
    kept: bool = True

    name = "calibrate"
    code = ("edgepack.calibration.sweep", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.model.key, self.text.key)

    def options(self) -> dict[str, Any]:  # noqa: D102
        source = "self" if self.calibrate.source == "self" else "file"
        kept = self.calibrate.model_dump(exclude={"keep"})
        kind = str(self._products)
        return kept | {"source": source, "arithmetic": kind} | keyed(self.device)

    @property
    def objective(self) -> str:
        """What errors are weighted by."""
        return self.calibrate.objective

    @property
    def hessians(self) -> Path | None:
        """The folder of H; None for the objective ``layer``, and if H is not kept."""
        return None if self.objective == "layer" or self.streams else self.folder

    @property
    def streams(self) -> bool:
        """Whether H is made when it is needed, and deleted then."""
        return not self.kept and self.objective != "layer" and not self.is_done

    def complete(self, executor: Executor) -> Steps[None]:  # noqa: D102
        if not self.streams:
            yield from super().complete(executor)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        if self.objective != "layer":
            yield from self.sweep(folder, executor)

    def sweep(self, folder: Path, executor: Executor, then: Then = keep) -> Steps[None]:
        """Write H into a folder; see `guided_hessians`."""
        self._refuse_too_large()
        yield from guided_hessians(
            Decoder(self.model, device=self.device),
            self.text.tokens,
            folder,
            self.calibrate.seed,
            output_side=self.objective == "model",
            products=self._products,
            executor=executor,
            room=self._room,
            every=self.sizes.every(free_space()),
            then=then,
        )

    @property
    def sizes(self) -> Sizes:
        """What a sweep takes."""
        return Sizes(self.model, self.calibrate)

    @property
    def _products(self) -> torch.dtype:
        """The type of the products of a sweep; the objective ``layer`` has none."""
        return torch.float32 if self.objective == "layer" else product_type(self.device)

    @property
    def _room(self) -> int:
        """Bytes of memory for the moments of a pass."""
        others = PROCESS + rotation_bytes(self.model) + self.sizes.fixed
        return max(0, working_memory() - others)

    def _refuse_too_large(self) -> None:
        """H of all experts of a role is in memory at once, which no disk makes up for."""
        needed, there = self.sweep_memory(), available_memory()
        if self.model.architecture.router is not None and needed > there:
            raise CalibrationError(
                f"calibrate: H of all experts of a role takes {needed / 1e9:.1f} GB of memory, "
                f"and {there / 1e9:.1f} GB are free",
                hint="calibrate.objective: guided takes less; or run it on a machine with more",
            )

    def facts(self) -> dict[str, Any]:
        """How many experts of all blocks were met by few tokens."""
        return {} if not self.is_done or self.hessians is None else expert_facts(self.folder)

    def warnings(self) -> list[str]:
        """That many experts were met by few tokens."""
        return expert_warnings(self.facts())

    def memory(self) -> int:
        """That of the sweep, if it is here."""
        return 0 if self.streams or self.objective == "layer" else self.sweep_memory()

    def sweep_memory(self) -> int:
        """A block with the moments of a group of its weights and the activations of a batch, or the
        head with the logits of a few tokens."""
        return self.sizes.sweep(self._room)

    @property
    def passes(self) -> int:
        """Backward passes of a block that the memory leads to."""
        return self.sizes.passes(self._room)

    def disk(self) -> Disk:  # noqa: D102
        if self.streams or self.objective == "layer":
            return Disk(0, 0)
        return self.sizes.disk(self.sizes.every(free_space()), kept=True)


def expert_facts(folder: Path) -> dict[str, Any]:
    """What a folder says of experts."""
    found = experts.of_all(folder)
    return {"experts": found} if found else {}


def expert_warnings(facts: dict[str, Any]) -> list[str]:
    """That many experts were met by few tokens."""
    found = facts.get("experts", {})
    if not found.get("few_tokens"):
        return []
    return [
        f"calibrate.tokens: {found['few_tokens']} of {found['experts']} experts were met by "
        f"fewer than {experts.FEW} tokens per column, {found['no_tokens']} by none; their H is "
        "drawn towards that of all experts of the block"
    ]


def join(plan: Plan) -> Plan:
    """The plan with H, where a weight is rounded in blocks or gets factors."""
    compress, model = plan.recipe.compress, plan.model
    budget = compress is not None and compress.is_budget
    rounded = _rounded(plan)
    if not budget and all(formats.get(f.Q).block_size == 1 and not f.rank for f in rounded):
        return plan
    plan = with_text(plan)
    assert plan.text is not None
    stage = Calibrate(model, plan.text, plan.recipe.calibrate, plan.device)
    stage, notes = _decide_to_keep(plan, stage)
    return plan.adding(stage, notes=[*_too_few_tokens(plan), *notes])


def _decide_to_keep(plan: Plan, stage: Calibrate) -> tuple[Calibrate, list[str]]:
    """The stage that keeps H or does not, as the recipe says, or else as the disk has room; and
    what is to be said of it."""
    asked, needed = stage.calibrate.keep, _needs_kept(plan.recipe)
    if asked is False and needed is not None:
        who, instead = needed
        raise RecipeError(f"calibrate.keep: {who}", hint=f"set calibrate.keep: true, or {instead}")
    if asked or needed is not None or stage.objective == "layer" or stage.is_done:
        return stage, []
    size, free = sum(stage.sizes.hessians), free_space()
    if asked is None and (3 * size <= free or stage.has_begun):
        return stage, []
    compress = plan.recipe.compress
    twice = compress is not None and compress.is_budget
    when = "twice: to choose formats, and to pack" if twice else "when its weights are packed"
    note = (
        f"calibrate: H takes {format_size(size)} of disk ({format_size(free)} are free) and is not "
        f"kept: that of each block is made {when}, and deleted"
    )
    return replace(stage, kept=False), [note]


def _needs_kept(recipe: sections.Recipe) -> tuple[str, str] | None:
    """Why H has to be kept, and what can be written instead of that; None if it need not be."""
    finetune, compress = recipe.finetune, recipe.compress
    if finetune is not None and finetune.init_lora_weights == "eora":
        why = "finetune.init_lora_weights: eora needs H when the weights are packed"
        return why, "init_lora_weights: default or pissa"
    if compress is not None and compress.compensate is not None:
        return "compress.compensate needs H from the first block on", "remove compress.compensate"
    return None


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
