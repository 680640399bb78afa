"""Every weight of a model in turn, one file each: the unit of work, and of resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from edgepack import formats
from edgepack.calibration.moments import (
    EMBEDDING,
    HEAD,
    OUTPUT,
    hessian_files,
    identity_hessian,
    weight_hessian,
)
from edgepack.calibration.sweep import Use, embed_batches, head_moments, layer_hessians
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU
from edgepack.core.executor import Executor
from edgepack.core.progress import Progress, Steps
from edgepack.core.travel import Part
from edgepack.core.weight_files import (
    IMATRIX,
    load_tensors,
    load_weight,
    save_tensors,
    weight_path,
)
from edgepack.core.weights import Hessian, WeightFormat, WeightSpec
from edgepack.decompose.caldera import Decomposition, caldera, needed_memory
from edgepack.errors import while_doing
from edgepack.formats._exact import DTYPES, recover
from edgepack.model.decoder import Decoder, Head
from edgepack.model.stream import Activations, Batch, Tokens, micro_batches, states

LAYER = "layer-hessians"
"""File of the Hessians that one block was calibrated on; no finished folder has it."""


@dataclass(frozen=True)
class Item:
    """One weight to decompose. `hessians` is the folder of a guided calibration or, of the
    objective ``layer``, the file `LAYER`; None: all columns alike."""

    model: Checkpoint
    name: str
    fmt: WeightFormat
    damping: tuple[float, ...]
    iterations: int
    hessians: Path | None
    folder: Path
    device: torch.device = CPU
    trained: Path | None = None
    """File of the matrix to decompose in place of the checkpoint's, by the same name."""

    @property
    def spec(self) -> WeightSpec:
        """What is known of the weight."""
        return self.model.specs[self.name]

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name.removesuffix('.weight')} ({self.fmt.Q}, rank {self.fmt.rank})"

    @property
    def path(self) -> Path:
        """The file to write."""
        return weight_path(self.folder, self.name)

    def writes(self) -> tuple[Path]:
        """The file."""
        return (self.path,)

    def reads(self) -> list[Part]:
        """Its Hessian, and the matrix if it is not the checkpoint's."""
        trained = [] if self.trained is None else [Part(self.trained)]
        if self.hessians is None:
            return trained
        tied = self.model.dimensions.tie_word_embeddings
        if self.hessians.name != LAYER:
            return [*trained, *hessian_files(self.hessians, self.spec, tied=tied)]
        return [*trained, Part(self.hessians, f"{self.layer_name}.")]

    def weights(self) -> tuple[str]:
        """The weight itself."""
        return (self.name,)

    @property
    def layer_name(self) -> str:
        """The name of its Hessian in the file `LAYER`; empty if it has none there."""
        if self.spec.block is not None:
            return self.spec.part
        tied = self.model.dimensions.tie_word_embeddings
        multiplied = (OUTPUT, EMBEDDING) if tied else (OUTPUT,)
        return HEAD if self.spec.role in multiplied else ""

    @property
    def is_given(self) -> bool:
        """Whether the checkpoint has it in its very format, so that it is taken as it is."""
        if self.fmt.exact:
            return True
        source = None if self.fmt.rank else self.model.quantized(self.name)
        return source is not None and source.format == self.fmt.Q

    def hessian(self) -> Hessian:
        """What its errors are weighed by."""
        if self.hessians is None:
            return identity_hessian(self.spec.shape[1])
        if self.hessians.name == LAYER:
            return _load_layer(self.hessians, self.layer_name, self.spec)
        tied = self.model.dimensions.tie_word_embeddings
        return weight_hessian(self.hessians, self.spec, tied=tied)

    @property
    def memory(self) -> int:
        """Bytes that the work takes."""
        two_sided = self.spec.block is not None and self.hessians is not None
        return needed_memory(self.spec.shape, rank=self.fmt.rank, two_sided=two_sided)


def decompose_weight(item: Item) -> None:
    """Write the file of one weight."""
    with while_doing(f"decomposing {item.label}"):
        H, fmt = item.hessian(), formats.get(item.fmt.Q)
        if item.trained is not None:
            W, source = load_tensors(item.trained)[0][item.name], None
        else:
            W, source = item.model.tensor(item.name), item.model.quantized(item.name)
        if item.fmt.exact and source is None:
            source = recover(W, DTYPES[item.spec.dtype], fmt)
        found = caldera(
            W.to(item.device),
            H.to(item.device),
            fmt,
            rank=item.fmt.rank,
            factors=item.fmt.factors,
            damping=item.damping,
            iterations=item.iterations,
            source=source,
        )
        if item.fmt.exact and item.spec.dtype in DTYPES:
            found = replace(found, method="exact")
        imatrix = {IMATRIX: H.imatrix.float()}
        save_tensors(item.path, found.weight.tensors() | imatrix, _about(found))


def decompose(
    items: list[Item], tokens: Tokens | None, executor: Executor, device: torch.device = CPU
) -> Steps[None]:
    """Write one file per matrix, leaving out those already there.

    With `tokens`, each block is calibrated on them as the blocks already packed pass them on
    (objective ``layer``) on a `device`, else by what the items name.
    """
    run = Run(items, executor)
    yield from run.one_shot() if tokens is None else run.sequential(tokens, device)


def decompose_streamed(items: list[Item], stream: Stream, executor: Executor) -> Steps[None]:
    """`decompose` while `stream` has H made, block by block from the top."""
    run = Run(items, executor)
    yield from run.streamed(stream)


Stream = Callable[[Executor, Use], Steps[None]]
"""Has the Hessians made, and used as they come (`calibration.streamed`)."""


class Run:
    """All items, one file each; those already there are left out."""

    def __init__(self, items: list[Item], executor: Executor) -> None:
        self.items, self.executor = items, executor
        self.model, self.folder = items[0].model, items[0].folder
        self.total = sum(item.spec.numel for item in items)
        self.done = 0

    def one_shot(self) -> Steps[None]:
        """All weights against the original's statistics, those outside the blocks first: they are
        the largest, and no core waits for them at the end."""
        yield from self.group([item for group in self.groups() for item in group])

    def streamed(self, stream: Stream) -> Steps[None]:
        """The weights of a block as soon as their H is there, those outside the blocks last."""
        outside, *blocks = self.groups()

        def use(block: int | None, hessians: Path) -> Steps[None]:
            group = outside if block is None else blocks[block]
            yield from self.group([replace(item, hessians=hessians) for item in group])

        yield from stream(self.executor, use)

    def sequential(self, tokens: Tokens, device: torch.device) -> Steps[None]:
        """Block after block, each on what the packed blocks before it pass on."""
        batches, file = micro_batches(tokens), self.folder / LAYER
        decoder = Decoder(self.model, device=device)
        dense = {item.name: partial(dense_weight, self.folder, item.name) for item in self.items}
        packed = Decoder(self.model, dense, device)
        outside, *blocks = self.groups()
        stream = states(decoder, tokens.all, self.folder, "x")
        if not any(state.exists for state in stream):
            stream[0].write(embed_batches(decoder, tokens.all, batches))
        for index, group in enumerate(blocks):
            inputs, output = stream[index], stream[index + 1]
            if not all(item.path.exists() for item in group):
                save_layer(file, layer_hessians(decoder.block(index), inputs, batches))
            yield from self.group([replace(item, hessians=file) for item in group])
            if inputs.exists and not output.exists:
                block = packed.block(index)
                read = (inputs.read(batch.rows).to(device) for batch in batches)
                output.write(map(block, read))
            inputs.path.unlink(missing_ok=True)
        yield from self.behind_the_blocks(outside, decoder.head(), stream[-1], batches)
        stream[-1].path.unlink()

    def behind_the_blocks(
        self, items: list[Item], head: Head, x: Activations, batches: list[Batch]
    ) -> Steps[None]:
        """The matrices outside the blocks, with H of what the packed blocks pass on to the head."""
        file = self.folder / LAYER
        save_layer(file, head_moments(head, x, batches))
        yield from self.group([replace(item, hessians=file) for item in items])
        file.unlink()

    def groups(self) -> list[list[Item]]:
        """The matrices outside the blocks, then those of each block."""
        groups: dict[int, list[Item]] = {-1: []}
        for item in self.items:
            block = item.spec.block
            groups.setdefault(-1 if block is None else block, []).append(item)
        return [groups[block] for block in sorted(groups)]

    def group(self, group: list[Item]) -> Steps[None]:
        """Some of the items."""
        missing = [item for item in group if not item.path.exists()]
        self.done += sum(item.spec.numel for item in group if item not in missing)
        for item in self.executor.map(decompose_weight, missing):
            yield Progress("decompose", self.done, self.total, item.label)
            self.done += item.spec.numel


def dense_weight(folder: Path, name: str) -> Tensor:
    """A decomposed weight, multiplied out."""
    return load_weight(folder, name)[0].dense()


def save_layer(path: Path, hessians: Mapping[str, Hessian]) -> None:
    """Keep Hessians as they are."""
    given = {f"{name}.{side}": H for name, H in hessians.items() for side, H in vars(H).items()}
    save_tensors(path, {key: H for key, H in given.items() if H is not None}, {})


def _load_layer(path: Path, name: str, spec: WeightSpec) -> Hessian:
    """One of them. Some matrices have none (shortcuts and tables, which are not multiplied with)
    and stay float16."""
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        if f"{name}.train" not in there:
            return identity_hessian(spec.shape[1])
        sides = {f"{name}.{field.name}": field.name for field in fields(Hessian)}
        return Hessian(**{s: file.get_tensor(key) for key, s in sides.items() if key in there})


def _about(found: Decomposition) -> dict[str, Any]:
    about = {k: v for k, v in vars(found).items() if k != "weight"}
    return {**about, "formats": found.weight.formats(), "rank": found.weight.rank}
