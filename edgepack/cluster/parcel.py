"""An item of work as it is sent: what to do, what it reads, and how to tell whether the other
machine sees the same files."""

from __future__ import annotations

import json
import mmap
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.checkpoint.base import Checkpoint
from edgepack.checkpoint.digests import Identity
from edgepack.cluster.sent import Sent, SentModel, SentWeight
from edgepack.core.disk import atomic
from edgepack.core.travel import Carrying, Part, Travelling

MODEL = "model"
"""The field of an item that is a checkpoint."""
PIECE = 64 << 20
"""Bytes of a file that are one object."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """A part that an item reads, and the identity that its file has here."""

    part: Part
    identity: Identity

    @property
    def is_here(self) -> bool:
        """Whether the path leads to the same file on this machine."""
        return self.identity.is_same_elsewhere(self.part.path)


@dataclass(frozen=True)
class Parcel:
    """An item and its work, pickled: with its model as a place, and with it as something that is
    filled with what is sent (None where an item has no model)."""

    with_place: bytes
    with_sent: bytes | None
    seen: tuple[Seen, ...]
    writes: tuple[Path, ...]

    @classmethod
    def pack(cls, work: Callable[[Any], None], item: Any, *, sending_model: bool) -> Parcel:
        """An item to send."""
        if not isinstance(item, Travelling):
            raise TypeError(f"{type(item).__name__} does not say what it reads and writes")
        seen = tuple(Seen(part, Identity.from_path(part.path)) for part in item.reads())
        sent = pickle.dumps((work, empty(item))) if sending_model and has_models(item) else None
        return cls(pickle.dumps((work, item)), sent, seen, tuple(item.writes()))


def has_models(item: Any) -> bool:
    """Whether an item reads weights of models, which a machine may lack."""
    return isinstance(item, Carrying) or isinstance(getattr(item, MODEL, None), Checkpoint)


def empty(item: Any) -> Any:
    """An item without the weights of its models."""
    if isinstance(item, Carrying):
        return item.empty()
    return replace(item, **{MODEL: SentModel(item.model)})


def contents(item: Any) -> dict[str, SentWeight]:
    """The weights of its models that an item reads."""
    if isinstance(item, Carrying):
        found = item.contents().items()
        return {name: SentWeight(Sent.from_tensor(tensor)) for name, tensor in found}
    return {name: SentWeight.read(item.model, name) for name in item.weights()}


def filled(item: Any, weights: Mapping[str, SentWeight]) -> Any:
    """An empty item with the weights that were sent."""
    if isinstance(item, Carrying):
        return item.filled({name: weight.values.tensor() for name, weight in weights.items()})
    item.model.fill(weights)
    return item


def pieces(part: Part) -> Iterator[Bytes]:
    """The bytes of a part as a file of its own; they are read from disk when they are used."""
    data = mapped(part.path)
    if not part.prefix:
        yield from (data[start : start + PIECE] for start in range(0, len(data), PIECE))
        return
    length = int.from_bytes(data[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length].tobytes())
    kept = {n: e for n, e in header.items() if n.startswith(part.prefix) or n == "__metadata__"}
    places, end = [], 0
    for name in sorted(kept, key=lambda n: kept[n].get("data_offsets", [0])[0]):
        if name != "__metadata__":
            start, stop = kept[name]["data_offsets"]
            places.append((8 + length + start, 8 + length + stop))
            kept[name] = {**kept[name], "data_offsets": [end, end + stop - start]}
            end += stop - start
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    yield np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    for start, stop in places:
        yield from (data[at : min(at + PIECE, stop)] for at in range(start, stop, PIECE))


def mapped(path: Path) -> Bytes:
    """A file's bytes, read from disk when they are used; it may be removed meanwhile."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def moved(item: Any, move: Callable[[Path], Path]) -> Any:
    """An item with its paths changed, those in dataclasses and tuples within it, too."""
    if isinstance(item, Path):
        return move(item)
    if isinstance(item, tuple):
        return type(item)(moved(one, move) for one in item)
    if not is_dataclass(item) or isinstance(item, type):
        return item
    made: Any = item
    return replace(made, **{f.name: moved(getattr(item, f.name), move) for f in fields(item)})


def below(folder: Path, path: Path) -> Path:
    """Where a path stands below `folder`."""
    absolute = path.absolute()
    return folder / absolute.relative_to(absolute.anchor)


def write_pieces(path: Path, pieces: Iterable[Any]) -> None:
    """A file from its pieces; it appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, durable=False) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            file.write(memoryview(piece))
