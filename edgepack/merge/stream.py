"""The weights of a merge, one tensor at a time: read, merged and written by a few threads.

A thread takes a tensor of the result through all of it, on one core. While one waits for the disk
others compute. So results do not depend on the number of threads. What is in memory is bounded:
tensors are begun only while all that they need stays below a limit (one alone may need more).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgepack.core.executor import Executor, Spread
from edgepack.core.hardware import trim_memory
from edgepack.core.progress import Progress, Steps
from edgepack.errors import CheckpointError, while_doing
from edgepack.merge.inputs import FLOATS, Input
from edgepack.merge.layout import BYTES, Layout, MergedTensor, Operand
from edgepack.merge.methods.base import Job, Method
from edgepack.merge.spread import spread, travels
from edgepack.merge.write import Writer, torch_dtype
from edgepack.recipe.merging import DTYPES

if TYPE_CHECKING:
    from edgepack.merge.embeddings import Rows
    from edgepack.merge.fisher.weighting import Weighting

STAGE = "merge"
THREADS = 4
"""Tensors in work at once, where there are so many cores."""
LIMIT = 256 << 20
"""Bytes that the tensors in work may need together, unless one alone needs more."""
FLOAT = 4
LARGE = 32 << 20
"""Bytes of a tensor after which freed memory is given back, since few others are as large."""


@dataclass(frozen=True)
class Work:
    """A merge, ready to be computed. `dtype` is the type that inputs are merged as (None: their
    own), `rows` says how embeddings are put into the order of the merged vocabulary, `weighting` in
    which metric a mean is one (None: the plain one)."""

    layout: Layout
    method: Method
    dtype: str | None
    seed: int
    rows: Rows | None = None
    weighting: Weighting | None = None

    def needs(self, tensor: MergedTensor) -> int:
        """Bytes of memory while a tensor is merged: inputs, temporaries, result."""
        count = len(tensor.reads)
        read = sum(self._bytes_read(operand) for operand in tensor.reads)
        method = self.method
        floats = 1 + method.temporaries + method.temporaries_per_model * len(tensor.operands)
        if method.shares:
            floats = 0
        adapted = max(
            (
                adapter.working_bytes(operand.name)
                for operand in tensor.reads
                if (adapter := self.layout.inputs[operand.input].adapter) is not None
            ),
            default=0,
        )
        moved = count * tensor.nbytes if tensor.has_rows and self.rows is not None else 0
        working = "F64" if self._in_double(tensor) else "F32"
        cast = 0 if tensor.dtype == working else tensor.nbytes
        weighted = 0 if self.weighting is None else self.weighting.needs(tensor)
        made = int(BYTES[working] * tensor.numel * floats)
        return read + moved + weighted + max(adapted, made + cast)

    def _in_double(self, tensor: MergedTensor) -> bool:
        """Whether a tensor is merged in float64, as methods do if an input is of that type."""
        stored = {self.layout.inputs[o.input].tensors[o.name].dtype for o in tensor.reads}
        return "F64" in stored if self.dtype is None else DTYPES[self.dtype] == "F64"

    def _bytes_read(self, operand: Operand) -> int:
        info = self.layout.inputs[operand.input].tensors[operand.name]
        size = BYTES[info.dtype] if info.dtype in FLOATS else FLOAT
        numel = 1
        for length in info.shape:
            numel *= length
        return numel * (max(size, BYTES[DTYPES[self.dtype]] if self.dtype else size))

    def merge(self, tensor: MergedTensor) -> Tensor:
        """A tensor of the result, in the type that it is stored as."""
        read = [self._read(operand, tensor) for operand in tensor.operands]
        base = None if tensor.base is None else self._read(tensor.base, tensor)
        values = [operand.values for operand in tensor.operands]
        job = Job(tensor.name, read, base, values, tensor.parameters, self.seed)
        with while_doing(f"merging {tensor.name}"):
            result = self.method.merge(job)
            if self.weighting is not None and self.weighting.applies(tensor):
                result = self.weighting.improve(job, result, tensor)
        del job, read, base
        made = result.reshape(tensor.shape).to(torch_dtype(tensor.dtype))
        narrower = made.dtype == torch.float16 or made.dtype != result.dtype == torch.float64
        if narrower and not bool(torch.isfinite(made).all()):
            kind = str(made.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"merge: {tensor.name} has values that {kind} cannot hold",
                hint="set out_dtype: " + ("bfloat16" if made.dtype == torch.float16 else "float64"),
            )
        return made

    def _read(self, operand: Operand, tensor: MergedTensor) -> Tensor:
        model = self.layout.inputs[operand.input]
        if tensor.has_rows and self.rows is not None:
            W = self._with_rows(model, operand.name, tensor.name, self.rows)
        else:
            W = model.read(operand.name)
        return W if self.dtype is None else W.to(torch_dtype(DTYPES[self.dtype]))

    def _with_rows(self, model: Input, own: str, name: str, rows: Rows) -> Tensor:
        """An embedding with its rows in the order of the merged vocabulary. It is called `own` in
        the model, and `name` in the result; a tied head has two names."""
        W = model.read(own)
        if rows.is_identity(model.name, len(W)):
            return W
        of = {other.name: other for other in self.layout.inputs}
        tensors = {model.name: W}
        for other in rows.needs(model.name):
            if other not in tensors:
                tensors[other] = of[other].read(_counterpart(of[other], model, name))
        return rows.take(model.name, tensors)


def _counterpart(other: Input, model: Input, name: str) -> str:
    """What a tensor outside the layers is called in another model: a tied one has no head."""
    if name in other.tensors:
        return name
    assert other.architecture is not None, "rows are moved in known families only"
    return other.architecture.outside["token_embd"]


def stream(
    work: Work,
    folder: Path,
    shard_size: int,
    threads: int | None = None,
    executor: Executor | None = None,
) -> Steps[None]:
    """Merge all tensors into safetensors in `folder`, which may hold those of a killed run. The
    machines of `executor`, if it has several, share those that can travel."""
    writer = Writer(folder, work.layout.tensors, shard_size)
    try:
        writer.check_space()
        missing = writer.missing
        todo = [tensor for tensor in work.layout.tensors if tensor.name in missing]
        total = work.layout.nbytes
        done = total - sum(tensor.nbytes for tensor in todo)
        yield Progress(STAGE, done, total, "merging")
        if isinstance(executor, Spread):
            there = [tensor for tensor in todo if travels(work, tensor)]
            todo = [tensor for tensor in todo if not travels(work, tensor)]
            yield from spread(work, there, folder, writer, executor)
            done = total - sum(tensor.nbytes for tensor in todo)
        for tensor in _in_threads(work, todo, writer, threads):
            done += tensor.nbytes
            yield Progress(STAGE, done, total, tensor.name)
        writer.write_index()
    finally:
        writer.close()


def _in_threads(
    work: Work, todo: Sequence[MergedTensor], writer: Writer, threads: int | None
) -> Iterator[MergedTensor]:
    """Do the work; each tensor is yielded when it is written."""
    cores = torch.get_num_threads()
    count = threads or min(
        THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    )
    pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1))
    running: dict[Future[None], tuple[MergedTensor, int]] = {}
    stopped = threading.Event()
    used, waiting = 0, list(reversed(todo))
    try:
        while waiting or running:
            while waiting and len(running) < count:
                needs = work.needs(waiting[-1])
                if running and used + needs > LIMIT:
                    break
                tensor = waiting.pop()
                used += needs
                running[pool.submit(_do, work, tensor, writer, stopped)] = tensor, needs
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                tensor, needs = running.pop(future)
                used -= needs
                future.result()
                yield tensor
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


@torch.no_grad()
def _do(work: Work, tensor: MergedTensor, writer: Writer, stopped: threading.Event) -> None:
    if not stopped.is_set():
        writer.write(tensor.name, work.merge(tensor))
        if tensor.nbytes >= LARGE:
            trim_memory()
