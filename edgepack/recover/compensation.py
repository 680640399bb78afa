"""Rounding in turns with training: what is not rounded yet makes up for what is.

Blocks are packed from the first to the last. In a block, matrices that read the same are rounded
together, in the order of their use. Before each such group, all of the block that may still move is
trained, so that the block makes of what the packed blocks before it pass on what the original makes
of its own stream (Tseng et al., QuIP#, arXiv 2402.04396, section 5). The matrix that writes the
stream last need not be trained: `last_writer` solves for it. Errors at the block's output count as
its H_out says, as far as that is known.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgepack.architectures.base import (
    ATTENTION_READS,
    FEED_READS,
    LINEAR_ROLES,
    MIXER_READS,
)
from edgepack.calibration.sizes import FLOAT, matrices_by_block
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.sweep import embed_batches, layer_hessians
from edgepack.calibration.text import counts
from edgepack.core.accelerator import CPU, product_type
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Disk
from edgepack.core.weight_files import load_tensors, load_weight, save_tensors, weight_path
from edgepack.core.weights import relative_error
from edgepack.decompose.stage import Decompose
from edgepack.decompose.weights import LAYER, Item, Run, dense_weight, save_layer
from edgepack.errors import RecipeError
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Activations, micro_batches, states
from edgepack.planning.plan import Plan, Text
from edgepack.recipe.training import Compensate
from edgepack.recover import last_writer
from edgepack.recover.block_training import BlockTraining, Settings
from edgepack.recover.training import Data

ROUNDING = "rounding"
"""Folder of the block that is being packed; no finished folder has it."""
AT_THE_END = 2
"""Times as many steps behind the last rounding, when only scales and factors move."""


@dataclass(frozen=True)
class Compensated(Decompose):
    """`Decompose`, but with training between the roundings of a block."""

    compensate: Compensate

    code = (*Decompose.code, "edgepack.recover.compensation")

    def options(self) -> dict[str, Any]:  # noqa: D102
        own = self.compensate.model_dump() | {"arithmetic": str(product_type(self.device))}
        return super().options() | {"compensate": own, "device": self.device.type}

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        calibration = self.calibration
        assert calibration is not None
        settings = Settings(**self.compensate.model_dump())
        items, text = self.items(folder), calibration.text
        yield from _Compensation(items, executor, text, settings, self.device).steps()

    def memory(self) -> int:
        """Beside what rounding takes: the block with its gradients and moments, activations."""
        d = self.model.dimensions
        block = max(sum(s.numel for s in specs) for specs in matrices_by_block(self.model))
        per_token = 20 * d.hidden_size + 8 * d.intermediate_size
        training = FLOAT * (7 * block + self.compensate.tokens * per_token)
        return super().memory() + max(training, 4 * block * FLOAT + last_writer.memory(self.model))

    def disk(self) -> Disk:
        """While it runs, also two streams of hidden states, before and behind a block, and H of a
        last writer."""
        found, calibration = super().disk(), self.calibration
        assert isinstance(calibration, Calibrate)
        length = calibration.calibrate.sequence_length
        tokens = length * sum(counts(calibration.calibrate, self.model.dimensions))
        streams = 4 * FLOAT * tokens * self.model.dimensions.hidden_size
        return found._replace(peak=found.peak + streams + last_writer.memory(self.model) // 2)


class _Compensation(Run):
    def __init__(
        self,
        items: list[Item],
        executor: Executor,
        text: Text,
        settings: Settings,
        device: torch.device,
    ) -> None:
        super().__init__(items, executor)
        self.tokens, self.settings, self.device = text.tokens, settings, device
        self.batches = micro_batches(self.tokens)
        self.held_out = [batch for batch in self.batches if batch.held_out]
        self.layer = all(item.hessians is None for item in items)
        self.decoder = Decoder(self.model, device=device)
        dense = {item.name: partial(dense_weight, self.folder, item.name) for item in items}
        self.packed = Decoder(self.model, dense, device)

    def steps(self) -> Steps[None]:
        """All weights; those outside the blocks first, unless they wait for their H."""
        outside, *blocks = self.groups()
        if not self.layer:
            yield from self.group(outside)
        t, x = (states(self.decoder, self.tokens.all, self.folder, name) for name in "tx")
        reached = max((index for index, state in enumerate(x) if state.exists), default=-1)
        if reached < 0:
            for stream in (t, x):
                stream[0].write(embed_batches(self.decoder, self.tokens.all, self.batches))
        for index, group in enumerate(blocks):
            if index < reached:
                self.done += sum(item.spec.numel for item in group)
            else:
                self._pass_on(self.decoder.block(index), t[index], t[index + 1])
                data = Data(x[index], t[index + 1], len(self.tokens.train), self.held_out)
                yield from self._block(index, group, data)
                self._pass_on(self.packed.block(index), x[index], x[index + 1])
            _remove(x[index], t[index])
        if self.layer:
            yield from self.behind_the_blocks(outside, self.decoder.head(), x[-1], self.batches)
        _remove(t[-1], x[-1])  # in this order: a run goes on from the last x that is there

    def _pass_on(self, block: Block, inputs: Activations, output: Activations) -> None:
        """Write a block's outputs, unless a killed run has."""
        if output.exists:
            return
        with torch.no_grad():
            parts = (inputs.read(batch.rows).to(self.device) for batch in self.batches)
            output.write(map(block, parts))

    def _block(self, index: int, items: list[Item], data: Data) -> Steps[None]:
        """Write the files of a block, unless all are there."""
        if all(item.path.exists() for item in items):
            self.done += sum(item.spec.numel for item in items)
            return
        place = self.folder / ROUNDING
        shutil.rmtree(place, ignore_errors=True)  # a block that was begun begins again
        place.mkdir()
        block = self.decoder.block(index)
        if self.layer:
            save_layer(place / LAYER, layer_hessians(block, data.inputs, self.batches))
            items = [replace(item, hessians=place / LAYER) for item in items]
        writer = last_writer.find(items, block)
        H_out = last_writer.metric(writer)
        training = BlockTraining(block, H_out, data, self.settings, product_type(self.device))
        fixed = [item for item in items if item.is_given or item.spec.part not in block.linears]
        yield from self._round(training, fixed, place)
        for group in turns([item for item in items if item not in fixed]):
            yield from self._train(training, index, self.settings.steps)
            if writer is not None and group == [writer]:
                group = [self._solve(training, writer, data, place)]
            yield from self._round(training, group, place)
        yield from self._train(training, index, AT_THE_END * self.settings.steps)
        for item in items:
            _write(item, training, place)
        shutil.rmtree(place)

    def _train(self, training: BlockTraining, index: int, steps: int) -> Steps[None]:
        for step in training.train(steps):
            what = f"block {index} makes up for its rounding, step {step + 1} of {steps}"
            yield Progress("decompose", self.done, self.total, what)

    def _solve(self, training: BlockTraining, item: Item, data: Data, place: Path) -> Item:
        """The block's last writer with its best value, and with H of what it is given now."""
        fit = last_writer.fit(item, training.now(), data.inputs, data.targets, self.batches)
        training.change(item.spec.part, fit.change())
        file = place / last_writer.FOLDER / LAYER
        file.parent.mkdir()
        save_layer(file, {item.layer_name: fit.H})
        return replace(item, hessians=file)

    def _round(self, training: BlockTraining, items: list[Item], place: Path) -> Steps[None]:
        """Round matrices as they are now; those that are rounded first are as they were."""
        fixed = not training.done
        for item in items:
            if not fixed:
                W = {item.name: training.weight(item.spec.part).cpu()}
                save_tensors(_trained(place, item.name), W, {})
        moved_on = [
            replace(item, folder=place, trained=None if fixed else _trained(place, item.name))
            for item in items
        ]
        yield from self.group(moved_on)
        for item in items:
            weight, _ = load_weight(place, item.name)
            training.round(item.spec.part, weight, fixed=fixed)


def _remove(*streams: Activations) -> None:
    for state in streams:
        state.path.unlink(missing_ok=True)


def turns(items: list[Item]) -> list[list[Item]]:
    """The matrices of a block in groups, in the order of their use; those of a group read the
    same."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in sorted(items, key=lambda item: LINEAR_ROLES.index(item.spec.role)):
        reads = (ATTENTION_READS, MIXER_READS, FEED_READS)
        group = next((roles for roles in reads if item.spec.role in roles), (item.spec.role,))
        groups.setdefault(group, []).append(item)
    return list(groups.values())


def _trained(place: Path, name: str) -> Path:
    """The file of a matrix before it is rounded."""
    return place / f"{name}.trained"


def _write(item: Item, training: BlockTraining, place: Path) -> None:
    """Write a weight as it is now; its errors are those of the checkpoint's own matrix."""
    tensors, about = load_tensors(weight_path(place, item.name))
    if item.spec.part in training.masters:
        weight = training.result(item.spec.part).to(CPU)
        tensors |= weight.tensors()
        W, H, dense = item.model.tensor(item.name), item.hessian(), weight.dense()
        about["error"] = relative_error(W, dense, H.held_out, H.out_held_out)
        about["error_train"] = relative_error(W, dense, H.train, H.out_train)
    save_tensors(item.path, tensors, about)


def join(plan: Plan) -> Plan:
    """The plan with training between roundings, where the recipe asks for it."""
    options = plan.recipe.compress.compensate if plan.recipe.compress else None
    if options is None:
        return plan
    decomposed = plan.find(Decompose)
    if decomposed is None or decomposed.calibration is None:
        raise RecipeError(
            "compress.compensate: nothing is rounded, so there is nothing to make up for",
            hint="choose a format of fewer bits, or remove `compensate`",
        )
    given = {field.name: getattr(decomposed, field.name) for field in fields(decomposed)}
    stage = Compensated(**given, compensate=options)
    stages = (stage if old is decomposed else old for old in plan.stages)
    return replace(plan, stages=tuple(stages))
