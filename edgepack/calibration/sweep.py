"""H = Σ w_t x_t x_tᵀ of every linear weight, with one block in memory.

`guided`: a forward sweep writes the input of every block to disk. A backward sweep starts from
the gradient of the cross-entropy on labels sampled from the model itself (so that the expected
outer product of gradients is the Fisher matrix), recomputes one block at a time from the top and
carries the gradient down. w_t = ‖g_t‖², g_t the gradient at the weight's output: GuidedQuant
(Kim et al., arXiv 2505.07004, eq. 6) with one group of output channels.

`model` (Tseng et al., YAQA, arXiv 2505.22988, sketch A): as `guided`, and the output side
H_out = Σ ‖x_t‖² g_t g_tᵀ, so that H_out ⊗ H approximates the Fisher matrix of the weight.

`layer`: w_t = 1, the classical layer-wise H (GPTQ), on the inputs that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.calibration import experts
from edgepack.calibration.finite import check_finite
from edgepack.calibration.groups import groups, pass_bytes, stacks_of
from edgepack.calibration.items import Files, Item, Options, Stack, Total
from edgepack.calibration.moments import EMBEDDING, HEAD, Moments
from edgepack.calibration.work import Elsewhere, Here, Workers
from edgepack.core.disk import atomic, sync
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.weights import Hessian
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, Head
from edgepack.model.stream import Activations, Batch, Run, Tokens, runs

Then = Callable[[int | None], Steps[None]]
"""What is done with the Hessians of a block as soon as they are whole, and, with None, with those
outside the blocks at the end. What is done already need not be done again."""
Use = Callable[[int | None, Path], Steps[None]]
"""The same, in a folder."""


def embed_batches(decoder: Decoder, ids: Tensor, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """The first block's inputs, batch by batch."""
    return _embedded(decoder, (ids[batch.rows] for batch in batches))


def _embedded(decoder: Decoder, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    for x in decoder.embed_parts(parts):
        if not torch.isfinite(x).all():
            table = {EMBEDDING: decoder.embedding()}
            check_finite(x, "the embeddings", table, decoder.checkpoint.architecture)
        yield x


def keep(_: int | None) -> Steps[None]:
    """What is done with Hessians that stay in the folder: nothing."""
    yield from ()


def guided_hessians(
    decoder: Decoder,
    tokens: Tokens,
    folder: Path,
    seed: int,
    *,
    output_side: bool = False,
    products: torch.dtype = torch.float32,
    executor: Executor | None = None,
    room: int | None = None,
    every: int = 1,
    then: Then = keep,
) -> Steps[None]:
    """Write the guided Hessians of every block and of the head into `folder`; with `output_side`
    (objective ``model``) those of the blocks have an H_out, that of the head its diagonal, and the
    embeddings have one too: H = Σ g_t g_tᵀ at their output, H_out = the number of occurrences of
    each token.

    Products with weights are computed in `products`, all else, moments included, in float32.
    The moments of a pass, with the tokens that are added to them, take at most `room` bytes (None:
    those of a block are collected in one pass). The inputs of one block in `every` stay on disk,
    others are made again when the backward sweep comes to them. Neither changes a byte, nor does
    the `executor`, by default this process. A killed run resumes after its last whole block; with
    `then`, H of a block need not stay.
    """
    workers: Workers = Here(decoder)
    if executor is not None and not executor.in_process:
        workers = Elsewhere(executor)
    options = Options(seed, output_side, tokens.counted is not None, decoder.device, products)
    files = Files(folder, decoder.widths, tokens.train.shape[1])
    yield from _Sweep(decoder, tokens, files, options, workers, room, every, then).run()


@dataclass
class _Sweep:
    decoder: Decoder
    tokens: Tokens
    files: Files
    options: Options
    workers: Workers
    room: int | None
    every: int
    then: Then
    runs: list[Run] = field(init=False)
    blocks: int = field(init=False)

    def __post_init__(self) -> None:
        self.runs, self.blocks = runs(self.tokens), self.decoder.dimensions.num_hidden_layers

    @torch.no_grad()
    def run(self) -> Steps[None]:
        """All of it, or what is missing."""
        reached = self._reached()
        if reached is None:
            yield from self._forward()
            yield self._progress(self.blocks, "sampling labels")
            self._labels()
            reached = self.blocks
        self._clear(reached)
        if reached < self.blocks:
            yield from self.then(reached)
        for i in reversed(range(reached)):
            done = 1 + self.blocks + 2 * (self.blocks - 1 - i)
            for missing in range(self._last(i), i):
                yield self._progress(done, f"forward through block {missing} again")
                self._through(missing)
            yield self._progress(done, f"back to block {i}")
            self._backward(i)
            self._clear(i)
            yield from self.then(i)
        if self.options.output_side and not (self.files.folder / EMBEDDING).exists():
            self._embedding()
        yield from self.then(None)
        self._clear(-1)

    def _progress(self, done: int, label: str) -> Progress:
        return Progress("calibrate", done, 3 * self.blocks + 1, label)

    def _reached(self) -> int | None:
        """The lowest block whose Hessians are whole, the number of blocks if the head's are."""
        whole = (i for i in range(self.blocks) if self.files.hessians(i).exists())
        return next(whole, self.blocks if (self.files.folder / HEAD).exists() else None)

    def _clear(self, reached: int) -> None:
        """Remove what nothing needs any more, when the Hessians of block `reached` are whole."""
        for run in self.runs:
            stale = [self.files.g(i, run) for i in range(reached + 1, self.blocks + 1)]
            stale += [self.files.x(i, run) for i in range(max(0, reached), self.blocks + 1)]
            for path in (states.path for states in stale if states.exists):
                path.unlink()

    def _items(self, kind: str, block: int, **options: Any) -> list[Item]:
        """One for every run."""
        model = self.decoder.checkpoint
        return [
            Item(kind, model, self.files, self.options, run, block, **options) for run in self.runs
        ]

    def _total(self, block: int, stack: Stack, path: Path, rows: Tensor | None = None) -> Total:
        return Total(self.files, tuple(self.runs), block, stack, path, rows)

    def _forward(self) -> Steps[None]:
        """Write the inputs of all blocks and of the head; those of one block in `every` stay."""
        start = self._last(self.blocks)
        if start < 0:
            start = 0
            self._embed()
        for i in range(start, self.blocks):
            yield self._progress(i, f"forward through block {i}")
            self._through(i)
            if i % self.every:
                for run in self.runs:
                    self.files.x(i, run).path.unlink(missing_ok=True)

    def _last(self, block: int) -> int:
        """The last block up to `block` whose inputs are there; −1: none."""
        for i in reversed(range(block + 1)):
            if all(self.files.x(i, run).exists for run in self.runs):
                return i
        return -1

    def _embed(self) -> None:
        ids = self.tokens.all
        parts = (ids[run.rows][batch] for run in self.runs for batch in run.batches)
        embedded = _embedded(self.decoder, parts)
        for run in self.runs:
            self.files.x(0, run).write(next(embedded) for _ in run.batches)

    def _through(self, block: int) -> None:
        self.workers.do(self._items("forward", block), [])

    def _labels(self) -> None:
        items = self._items("labels", self.blocks, stacks=((HEAD,),), gradient=True)
        if (counted := self.tokens.counted) is not None:
            items = [replace(item, tokens=counted[item.run.rows]) for item in items]
        path = self.files.folder / HEAD
        self.workers.do(items, [self._total(self.blocks, (HEAD,), path)])

    def _backward(self, block: int) -> None:
        """Write the gradients at the block's inputs, and the Hessians of its weights, in as many
        passes as their moments need."""
        path, names = self.files.unfinished(block), self.decoder.block_names(block)
        path.mkdir(exist_ok=True)
        shapes = {role: self.decoder.checkpoint.specs[name].shape for role, name in names.items()}
        rows = max(batch.stop - batch.start for run in self.runs for batch in run.batches)
        size = partial(
            pass_bytes,
            shapes=shapes,
            runs=self.runs,
            output_side=self.options.output_side,
            tokens=rows * self.files.length,
            used=self.decoder.dimensions.num_experts_per_tok,
        )
        stacks = stacks_of(names)
        missing = [stack for stack in stacks if not all((path / role).exists() for role in stack)]
        passes = groups(missing, size, self.room) or [()]
        for number, group in enumerate(passes, 1):
            last = number == len(passes)
            items = self._items("backward", block, stacks=group, gradient=last)
            self.workers.do(items, [self._total(block, stack, path) for stack in group])
        about = experts.about(path, names)
        if about:
            with atomic(path / experts.ABOUT) as temporary:
                experts.write(temporary, about)
        path.rename(self.files.hessians(block))
        sync(self.files.folder)

    def _embedding(self) -> None:
        """Write the embeddings' Hessian. ½ is added to every token's count, so that tokens absent
        from the calibration text still get some weight."""
        ids, vocabulary = self.tokens.all, self.decoder.dimensions.vocab_size
        items = self._items("embedding", 0, stacks=((EMBEDDING,),))
        items = [replace(item, tokens=ids[item.run.rows]) for item in items]
        counts = torch.bincount(self.tokens.train.flatten(), minlength=vocabulary).double()
        path = self.files.folder / EMBEDDING
        self.workers.do(items, [self._total(0, (EMBEDDING,), path, counts + 0.5)])


@torch.no_grad()
def layer_hessians(block: Block, x: Activations, batches: list[Batch]) -> dict[str, Hessian]:
    """Plain Hessians (w_t = 1) of a block's weights on the given inputs."""
    moments = Moments()
    for batch in batches:

        def linear(role: str, x: Tensor, held_out: bool = batch.held_out) -> Tensor:
            moments.add(role, x, None, held_out)
            return block.linear(role, x)

        hidden = x.read(batch.rows).to(block.device)
        block(hidden, linear=linear)
        moments.count(hidden.shape[0] * hidden.shape[1], batch.held_out)
    experts.draw_together(moments, block.linears)
    return moments.hessians()


@torch.no_grad()
def head_moments(head: Head, x: Activations, batches: list[Batch]) -> dict[str, Hessian]:
    """The plain Hessian of the head's inputs."""
    moments = Moments()
    for batch in batches:
        hidden = x.read(batch.rows).to(head.output.device)
        moments.add(HEAD, head.normalize(hidden), None, batch.held_out)
        moments.count(hidden.shape[0] * hidden.shape[1], batch.held_out)
    return moments.hessians()
