"""Block layouts as data: which integer goes to which bits of a GGUF block.

Source of all layouts: the block structs of llama.cpp, ``ggml/src/ggml-common.h``, and the reading
order in its ``dequantize_row_*``. In every stock type byte j of a run holds values
j, j + run, j + 2·run … from its low bits up, so a `Plane` describes any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Values = Mapping[str, Tensor]
"""A block's contents by name: fp16 ``[out, blocks]`` and integers ``[out, blocks, count]``."""


class Part(Protocol):
    """Consecutive bytes of a block."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def write(self, values: Values) -> Tensor:
        """Bytes ``[out, blocks, size]`` of the values (integers as uint8)."""

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """Inverse of `write`: the bits of each value that this part stores, the other bits 0."""


@dataclass(frozen=True)
class Half:
    """One fp16 number."""

    name: str
    size: int = 2

    def write(self, values: Values) -> Tensor:
        """See `Part`."""
        return values[self.name].contiguous().unsqueeze(-1).view(torch.uint8)

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """See `Part`."""
        return {self.name: data.contiguous().view(torch.float16).squeeze(-1)}


@dataclass(frozen=True)
class Plane:
    """Bits ``shift … shift + bits`` of `count` values (those of `names`, one after the other)."""

    names: tuple[str, ...]
    count: int
    bits: int
    run: int
    shift: int = 0

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * self.bits // 8

    def write(self, values: Values) -> Tensor:
        """See `Part`."""
        whole = torch.cat([values[name] for name in self.names], dim=-1)
        kept = ((whole >> self.shift) & ((1 << self.bits) - 1)).to(torch.uint8)
        slices = torch.unflatten(kept, -1, (-1, 8 // self.bits, self.run))
        data = torch.zeros_like(slices[..., 0, :])
        for i in range(8 // self.bits):
            data |= slices[..., i, :] << (self.bits * i)
        return data.flatten(-2)

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """See `Part`."""
        runs = torch.unflatten(data, -1, (-1, 1, self.run))
        places = torch.arange(0, 8, self.bits, dtype=torch.uint8, device=data.device).unsqueeze(-1)
        whole = ((runs >> places) & ((1 << self.bits) - 1)).flatten(-3)
        if self.shift:
            wide = torch.uint8 if self.shift + self.bits <= 8 else torch.int16
            whole = whole.to(wide) << self.shift
        return dict(zip(self.names, whole.chunk(len(self.names), dim=-1), strict=True))


@dataclass(frozen=True)
class SixBitPairs:
    """Eight 6-bit scales and eight 6-bit mins in 12 bytes (Q4_K, Q5_K).

    Bytes 0-3 and 4-7 hold the first four scales and mins, with the top two bits of the last four
    above them; bytes 8-11 hold the low nibbles of the last four scales and mins.
    """

    names: tuple[str, str] = ("scales", "mins")
    size: int = 12

    def write(self, values: Values) -> Tensor:
        """See `Part`."""
        scales, mins = (torch.split(values[name], 4, dim=-1) for name in self.names)
        top = [first | ((last >> 4) << 6) for first, last in (scales, mins)]
        return torch.cat([*top, (scales[1] & 15) | ((mins[1] & 15) << 4)], dim=-1)

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """See `Part`."""
        *top, low = torch.split(data, 4, dim=-1)
        return {
            name: torch.cat([first & 63, ((low >> place) & 15) | ((first >> 6) << 4)], dim=-1)
            for name, first, place in zip(self.names, top, (0, 4), strict=True)
        }


@dataclass(frozen=True)
class Words:
    """`count` little-endian words, made of bit fields (name, bits, how many), lowest bits first."""

    fields: tuple[tuple[str, int, int], ...]
    count: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * sum(bits * many for _, bits, many in self.fields) // 8

    def write(self, values: Values) -> Tensor:
        """See `Part`."""
        word: Tensor = torch.zeros((), dtype=torch.int64)
        at = 0
        for name, bits, many in self.fields:
            kept = torch.unflatten(values[name].to(torch.int64), -1, (self.count, many))
            for i in range(many):
                word = word | (kept[..., i] << at)
                at += bits
        places = torch.arange(0, at, 8, device=word.device)
        return ((word.unsqueeze(-1) >> places) & 255).to(torch.uint8).flatten(-2)

    def read(self, data: Tensor) -> dict[str, Tensor]:
        """See `Part`."""
        octets = torch.unflatten(data.to(torch.int64), -1, (self.count, -1))
        places = torch.arange(0, 8 * octets.shape[-1], 8, device=data.device)
        word, at, out = (octets << places).sum(-1, keepdim=True), 0, {}
        for name, bits, many in self.fields:
            each = torch.arange(at, at + bits * many, bits, device=data.device)
            found = ((word >> each) & ((1 << bits) - 1)).flatten(-2)
            out[name] = found.to(torch.uint8 if bits <= 8 else torch.int16)
            at += bits * many
        return out


class Storage(Protocol):
    """How the file stores an integer that memory holds."""

    def to_file(self, value: Tensor) -> Tensor:
        """The unsigned number whose bits are written."""

    def from_file(self, value: Tensor) -> Tensor:
        """Inverse of `to_file`."""


@dataclass(frozen=True)
class Stored:
    """An integer has type `dtype` in memory; the file stores value + `bias` as type `file`."""

    dtype: torch.dtype = torch.uint8
    bias: int = 0
    file: torch.dtype = torch.uint8

    def to_file(self, value: Tensor) -> Tensor:
        """See `Storage`."""
        return (value.to(torch.int16) + self.bias).to(self.file)

    def from_file(self, value: Tensor) -> Tensor:
        """See `Storage`."""
        return (value.to(torch.int16) - self.bias).to(self.dtype)


AS_UINT8 = Stored()


@dataclass(frozen=True)
class ByValue:
    """Memory holds codes in the order of their values; in the file, code n means `values[n]`.

    Where several codes of the file mean the same value, the first is written.
    """

    values: tuple[int, ...]

    def to_file(self, value: Tensor) -> Tensor:
        """See `Storage`."""
        return _looked_up([self.values.index(v) for v in self._sorted], value)

    def from_file(self, value: Tensor) -> Tensor:
        """See `Storage`."""
        return _looked_up([self._sorted.index(v) for v in self.values], value)

    @property
    def _sorted(self) -> list[int]:
        return sorted(set(self.values))


def _looked_up(table: list[int], index: Tensor) -> Tensor:
    return torch.tensor(table, dtype=torch.uint8, device=index.device)[index.to(torch.int32)]


@dataclass(frozen=True)
class Layout:
    """A block: its parts in file order, and how its integers are stored (default: as uint8)."""

    parts: tuple[Part, ...]
    stored: Mapping[str, Storage] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes per block."""
        return sum(part.size for part in self.parts)

    def pack(self, values: Values) -> Tensor:
        """Bytes ``[out, blocks, size]``."""
        raw = {
            name: value if value.is_floating_point() else self._kept(name).to_file(value)
            for name, value in values.items()
        }
        return torch.cat([part.write(raw) for part in self.parts], dim=-1)

    def parse(self, data: Tensor) -> dict[str, Tensor]:
        """Inverse of `pack`."""
        raw: dict[str, Tensor] = {}
        pieces = torch.split(data, [part.size for part in self.parts], dim=-1)
        for part, piece in zip(self.parts, pieces, strict=True):
            for name, bits in part.read(piece).items():
                raw[name] = raw[name] | bits if name in raw else bits
        return {
            name: value if value.is_floating_point() else self._kept(name).from_file(value)
            for name, value in raw.items()
        }

    def _kept(self, name: str) -> Storage:
        return self.stored.get(name, AS_UINT8)
