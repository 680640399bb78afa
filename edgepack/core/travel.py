"""What an item of work has to say of itself, so that it can be done on another machine: the files
that it reads, the weights that it reads of its model, and the files that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A file that is read; of a safetensors file perhaps only the tensors whose names start with
    `prefix`. One that many items read is `kept` where it was sent."""

    path: Path
    prefix: str = ""
    kept: bool = False


@runtime_checkable
class Travelling(Protocol):
    """A frozen dataclass. Its paths, and those of dataclasses in it, lead to what it reads and
    writes; elsewhere they lead to other places. A field `model` is a checkpoint."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def writes(self) -> Sequence[Path]:
        """The files that it writes."""
        ...

    def reads(self) -> Sequence[Part]:
        """The files that it reads, beside those of its model."""
        ...

    def weights(self) -> Sequence[str]:
        """The weights that it reads of its model, by name."""
        ...


@runtime_checkable
class Carrying(Travelling, Protocol):
    """An item that reads tensors of other things than one checkpoint, and says itself which."""

    def empty(self) -> Any:
        """The same without what it reads them from."""
        ...

    def contents(self) -> Mapping[str, Tensor]:
        """The tensors, by names of its own."""
        ...

    def filled(self, contents: Mapping[str, Tensor]) -> Any:
        """An empty one with the tensors."""
        ...
