"""The work of a sweep as plain data: one run of batches, one block, the moments of some weights.

An executor may send items to other machines. Each writes files that appear whole: hidden states,
gradients, and the run's own moments, which one more item per weight adds up in the order of the
runs. So bytes do not depend on who does what when, or on which moments are collected together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgepack.calibration.gram import gram_bytes
from edgepack.calibration.side_by_side import AT_ONCE
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU
from edgepack.core.parts import stem
from edgepack.core.travel import Part
from edgepack.model.stream import Activations, Run

Stack = tuple[str, ...]
"""Weights of a block whose moments belong together: one, or all experts' of a role."""


@dataclass(frozen=True)
class Files:
    """Where a sweep keeps hidden states (of `widths` before every block and the head, sequences of
    `length` tokens), gradients and moments."""

    folder: Path
    widths: tuple[int, ...]
    length: int

    def x(self, block: int, run: Run) -> Activations:
        """Inputs of a block, or of the head."""
        return self._states("x", block, run, torch.bfloat16)

    def g(self, block: int, run: Run) -> Activations:
        """Gradients there."""
        return self._states("g", block, run, torch.float32)

    def _states(self, name: str, block: int, run: Run, dtype: torch.dtype) -> Activations:
        shape = (run.sequences, self.length, self.widths[block])
        return Activations(self.folder / f"{name}-{block}.{run.number}", shape, dtype)

    def moments(self, block: int, stack: Stack, run: Run) -> Path:
        """Those of one run, for some weights of a block."""
        return self.folder / f"m-{block}.{stem(stack[0])}.{run.number}"

    def hessians(self, block: int) -> Path:
        """The folder of a block's Hessians; it has this name when they are whole."""
        return self.folder / str(block)

    def unfinished(self, block: int) -> Path:
        """The same folder before."""
        return self.folder / f"{block}.unfinished"


@dataclass(frozen=True)
class Options:
    """How labels are drawn, and what moments are collected."""

    seed: int
    output_side: bool = False
    """Whether the gradients' moments are collected as well (objective ``model``)."""
    some: bool = False
    """Whether only some tokens have labels that count."""
    device: torch.device = CPU
    products: torch.dtype = torch.float32
    """Of weights with hidden states and gradients."""


@dataclass(frozen=True)
class Item:
    """A run at a block. `kind` says what is done (`work.KINDS`); `stacks` are the weights whose
    moments are collected. Backward passes write the gradient at the block's input if `gradient`."""

    kind: str
    model: Checkpoint
    files: Files
    options: Options
    run: Run
    block: int
    stacks: tuple[Stack, ...] = ()
    gradient: bool = False
    tokens: Tensor | None = None
    """The run's token ids (at the embeddings), or which of them count (at the head)."""

    @property
    def roles(self) -> list[str]:
        """All weights of the stacks."""
        return [role for stack in self.stacks for role in stack]

    @property
    def is_done(self) -> bool:
        """Whether all that it writes is there."""
        return all(path.exists() for path in self.writes())

    @property
    def cores(self) -> int:
        """Cores that it can use; bytes do not depend on their number."""
        return AT_ONCE

    @property
    def memory(self) -> int:
        """Bytes that it takes where it is done by itself: weights, and moments of its own."""
        specs, roles = [self.model.specs[name] for name in self.weights()], set(self.roles)
        sides = [n for spec in specs if spec.part in roles for n in spec.shape]
        return 4 * sum(spec.numel for spec in specs) + sum(map(gram_bytes, sides))

    def writes(self) -> list[Path]:
        """Hidden states or gradients, and moments."""
        files, run, block = self.files, self.run, self.block
        if self.kind == "forward":
            return [files.x(block + 1, run).path]
        gradient = [files.g(block, run).path] if self.gradient else []
        return [*gradient, *(files.moments(block, stack, run) for stack in self.stacks)]

    def reads(self) -> list[Part]:
        """Hidden states at the block, and in a backward pass the gradients after it."""
        files, run, block = self.files, self.run, self.block
        if self.kind == "embedding":
            return [Part(files.g(0, run).path)]
        after = [Part(files.g(block + 1, run).path)] if self.kind == "backward" else []
        return [Part(files.x(block, run).path), *after]

    def weights(self) -> list[str]:
        """Those of the block, or those outside the blocks."""
        block = self.block if self.kind in ("forward", "backward") else None
        return [name for name, spec in self.model.specs.items() if spec.block == block]


@dataclass(frozen=True)
class Total:
    """The moments of a stack, which `runs` have written, are added up, and its Hessians are written
    to `path`, a block's folder or a file."""

    files: Files
    runs: tuple[Run, ...]
    block: int
    stack: Stack
    path: Path
    rows: Tensor | None = None
    """The diagonal of the output side, where it is known beforehand."""

    def writes(self) -> list[Path]:
        """A file a weight."""
        return [self.path / name for name in self.stack] if self.path.is_dir() else [self.path]

    def reads(self) -> list[Part]:
        """The runs' moments."""
        return [Part(path) for path in self.parts]

    def weights(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def parts(self) -> list[Path]:
        """The runs' moments."""
        return [self.files.moments(self.block, self.stack, run) for run in self.runs]
