"""What a training graph is made for, and the layout of its flat vector of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.errors import EdgepackError
from edgepack.export._onnx_store import LORA
from edgepack.finetune.graph.base import Base

Mode = Literal["factors", "stack"]


@dataclass(frozen=True)
class AdamW:
    """Decay of the moments, the term that avoids 0 / 0, weight decay, and the largest norm of the
    gradient (0: any). Loshchilov and Hutter, arXiv 1711.05101."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True)
class Options:
    """`mode` says what is trained: the model's own L and R, or a new adapter of `rank` on top of
    them. Rows have `length` tokens; None: any number up to `context`, in a graph that browsers load
    slowly. With `recompute`, blocks are computed once more in the backward pass instead of being
    kept in memory."""

    mode: Mode = "factors"
    rank: int = 8
    length: int | None = 128
    context: int = 2048
    batch: int = 1
    roles: tuple[str, ...] = LINEAR_ROLES
    recompute: bool = True
    optimizer: AdamW = AdamW()


@dataclass(frozen=True)
class Parameter:
    """A trained matrix: `part` R is lora_A ``[in, rank]``, L is lora_B ``[rank, out]``: transposed,
    as the graph multiplies with them. Its values begin at `offset` in the flat vector."""

    weight: str
    block: int
    part: str
    shape: tuple[int, int]
    offset: int

    @property
    def name(self) -> str:
        """The name as in files of factors."""
        return f"{self.weight.removesuffix('.weight')}.{LORA[self.part]}"

    @property
    def stop(self) -> int:
        """The offset after the last value."""
        return self.offset + prod(self.shape)


def parameters(base: Base, options: Options) -> list[Parameter]:
    """The trained matrices, block by block in the order of use."""
    specs = [s for s in base.checkpoint.specs.values() if s.block is not None]
    specs.sort(key=lambda s: (s.block or 0, _order(s)))
    found: list[Parameter] = []
    for spec in (s for s in specs if s.role in options.roles):
        rank = _rank(base.formats[spec.name], options)
        rows, columns = spec.shape
        for part, shape in (("R", (columns, rank)), ("L", (rank, rows))):
            if rank:
                offset = found[-1].stop if found else 0
                found.append(Parameter(spec.name, spec.block or 0, part, shape, offset))
    if not found:
        raise EdgepackError(
            "the model has no factors L·R that could be trained",
            hint="--mode stack trains a new adapter on top of it",
        )
    return found


def _order(spec: WeightSpec) -> int:
    return LINEAR_ROLES.index(spec.role) if spec.role in LINEAR_ROLES else len(LINEAR_ROLES)


def _rank(fmt: WeightFormat, options: Options) -> int:
    return fmt.rank if options.mode == "factors" else options.rank


def in_block(found: Iterable[Parameter], block: int) -> list[Parameter]:
    """Those of one block."""
    return [parameter for parameter in found if parameter.block == block]
