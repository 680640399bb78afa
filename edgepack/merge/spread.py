"""Tensors of a merge as items of work: on several machines they are merged side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from edgepack.core.executor import Spread
from edgepack.core.progress import Progress, Steps
from edgepack.core.travel import Part
from edgepack.core.weight_files import save_tensors
from edgepack.merge import methods
from edgepack.merge.inputs import Input
from edgepack.merge.layout import Layout, MergedTensor, Operand

if TYPE_CHECKING:
    from edgepack.merge.stream import Work
    from edgepack.merge.write import Writer

RESULT = "result"


@dataclass(frozen=True)
class SentInput:
    """Tensors of a model that were sent, for a machine that does not have the model."""

    name: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self.tensors[name]


@dataclass(frozen=True)
class Item:
    """One tensor of the result. `inputs` are the models that it is made of, by their places in its
    operands; the merged tensor goes into a file of its own."""

    inputs: tuple[Input | SentInput, ...]
    tensor: MergedTensor
    method: str
    dtype: str | None
    seed: int
    path: Path
    memory: int

    @classmethod
    def of(cls, work: Work, tensor: MergedTensor, folder: Path) -> Item:
        """From a merge. Of its models only those that are read go along."""
        used = sorted({operand.input for operand in tensor.reads})

        def moved(operand: Operand) -> Operand:
            return replace(operand, input=used.index(operand.input))

        base = None if tensor.base is None else moved(tensor.base)
        operands = tuple(map(moved, tensor.operands))
        index = work.layout.tensors.index(tensor)
        return cls(
            tuple(work.layout.inputs[i] for i in used),
            replace(tensor, operands=operands, base=base),
            work.method.name,
            work.dtype,
            work.seed,
            folder / f"tensor-{index}.merged",
            work.needs(tensor),
        )

    def reads(self) -> tuple[Part, ...]:
        """Nothing but the models."""
        return ()

    def writes(self) -> tuple[Path]:
        """The file."""
        return (self.path,)

    def weights(self) -> tuple[str, ...]:
        """None of one model: see `contents`."""
        return ()

    def empty(self) -> Item:
        """The same without the models, for a machine that is sent their tensors."""
        return replace(self, inputs=tuple(SentInput(model.name) for model in self.inputs))

    def contents(self) -> dict[str, Tensor]:
        """What it reads of the models."""
        reads = self.tensor.reads
        return {f"{o.input} {o.name}": self.inputs[o.input].read(o.name) for o in reads}

    def filled(self, contents: Mapping[str, Tensor]) -> Item:
        """An empty one with what was sent."""
        found: list[dict[str, Tensor]] = [{} for _ in self.inputs]
        for key, values in contents.items():
            index, _, name = key.partition(" ")
            found[int(index)][name] = values
        pairs = zip(self.inputs, found, strict=True)
        return replace(self, inputs=tuple(SentInput(one.name, own) for one, own in pairs))


def travels(work: Work, tensor: MergedTensor) -> bool:
    """Whether a tensor is merged from its operands alone: no rows of other tensors, no Fisher
    matrices and no adapters."""
    inputs = [work.layout.inputs[operand.input] for operand in tensor.reads]
    alone = work.weighting is None and not (tensor.has_rows and work.rows is not None)
    return alone and not any(model.adapter for model in inputs)


def spread(
    work: Work, todo: Sequence[MergedTensor], folder: Path, writer: Writer, executor: Spread
) -> Steps[None]:
    """Merge tensors on the machines of an executor; each is written as soon as it is there."""
    items = [Item.of(work, tensor, folder) for tensor in todo]
    total, done = work.layout.nbytes, work.layout.nbytes - sum(t.nbytes for t in todo)
    waiting: list[Item] = []
    for item in executor.map(merge_tensor, items):
        yield Progress("merge", done, total, item.tensor.name)
        _take(waiting, writer)
        waiting.append(item)
        done += item.tensor.nbytes
    _take(waiting, writer)


def _take(items: list[Item], writer: Writer) -> None:
    """Put tensors that came back into their place."""
    while items:
        item = items.pop()
        writer.write(item.tensor.name, load_file(item.path)[RESULT])
        item.path.unlink()


def merge_tensor(item: Item) -> None:
    """Write the file of one tensor."""
    from edgepack.merge.stream import Work

    inputs: Any = item.inputs
    layout = Layout(inputs, (item.tensor,), (), tied=False)
    work = Work(layout, methods.get(item.method), item.dtype, item.seed)
    save_tensors(item.path, {RESULT: work.merge(item.tensor).contiguous()}, {})
