"""Codes and grids as the initializers of MatMulNBits and GatherBlockQuantized.

Both hold ``d·(code − z)`` with 2, 4 or 8 bits a code, the first code in the lowest bits. Stock GGUF
types on such a grid are stored with the very codes they have there; 3 bits lie on disk as planes of
2 and 1 bits, which a session joins to 4 when it loads (constant folding).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.weights import QuantizedTensor
from edgepack.export.values import F32
from edgepack.formats._integer import Integer
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale
from edgepack.formats.base import Format

Bytes = NDArray[np.uint8]

COMPUTED = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits of a code → bits that MatMulNBits computes with."""
BLOCKS = {2: (32, 64, 128), 3: (16, 32, 64, 128, 256), 4: (16, 32, 64, 128, 256)}
"""Bits → block sizes with fast kernels (8 bits: as 4)."""


WHOLE_ROWS = ("f16", "int8")
"""Formats without blocks: for MatMul, and for MatMulInteger."""


@dataclass(frozen=True)
class Layout:
    """How a format is stored: `bits` a code, blocks of `size` columns, and whether blocks have zero
    points of their own (else zero is in the middle of the range, 2^(bits−1)). With `mirrored`, d
    and the codes change sides, which puts a zero that lies one below the middle there."""

    bits: int
    size: int
    zeros: bool
    mirrored: bool = False

    @property
    def computed(self) -> int:
        """Bits that the runtime computes with."""
        return COMPUTED[self.bits]


def layout(form: Format) -> Layout | None:
    """How ONNX stores a format; None where it has no such grid, or no fast kernel for it."""
    if isinstance(form, Integer):
        return Layout(form.bits, form.block_size, zeros=bool(form.zero_bits))
    if not isinstance(form, OneScale) or not isinstance(form.code_levels, Uniform):
        return None
    bits = (len(form.levels) - 1).bit_length()
    if bits not in COMPUTED or form.block_size not in BLOCKS.get(bits, BLOCKS[4]):
        return None
    below = 2 ** (bits - 1) + form.code_levels.low
    return Layout(bits, form.block_size, zeros=False, mirrored=below == 1) if below < 2 else None


def layout_of(name: str) -> Layout | None:
    """The same by a format's name; None for float32, which is no format."""
    return None if name == F32 else layout(plugins.find("formats", name))


def codes(q: QuantizedTensor, how: Layout) -> Bytes:
    """``[out, blocks, size·bits/8]``."""
    blocks = torch.unflatten(q.codes, 1, (-1, how.size))
    return _packed(2**how.bits - 1 - blocks if how.mirrored else blocks, how.bits)


def zeros(q: QuantizedTensor, how: Layout) -> Bytes:
    """Zero points ``[out, ⌈blocks·bits/8⌉]``, packed as codes are."""
    z = q.grid["z"]
    missing = -z.shape[1] % (8 // how.computed)
    return _packed(torch.nn.functional.pad(z, (0, missing)), how.computed)


def scales(q: QuantizedTensor, how: Layout) -> NDArray[np.float16]:
    """``[out, blocks]``."""
    d = q.grid["d"].contiguous()
    found: NDArray[np.float16] = (-d if how.mirrored else d).numpy()
    return found


def columns(q: QuantizedTensor, how: Layout) -> NDArray[np.int8 | np.uint8]:
    """Codes turned to ``[in, out]``, as DequantizeLinear takes them: of 4 bits, two to a byte in
    one row, and where no block has a zero point, less the zero in the middle."""
    turned = q.codes.T.flatten()
    if not how.zeros:
        turned = turned ^ 2 ** (how.bits - 1)  # as two's complement
    return _turned(turned, how, (q.codes.shape[1], q.codes.shape[0]))


def column_zeros(q: QuantizedTensor, how: Layout) -> NDArray[np.int8 | np.uint8]:
    """Zero points turned likewise, ``[blocks, out]``."""
    z = q.grid["z"]
    return _turned(z.T.flatten(), how, (z.shape[1], z.shape[0]))


def _turned(values: Tensor, how: Layout, shape: tuple[int, int]) -> NDArray[np.int8 | np.uint8]:
    if how.bits == 4:
        flat: NDArray[np.uint8] = _packed(torch.nn.functional.pad(values, (0, len(values) % 2)), 4)
    else:
        flat = values.numpy().reshape(shape)
    return flat if how.zeros else flat.view(np.int8)


def _packed(values: Tensor, bits: int) -> Bytes:
    """Low `bits` of values ``[…, n]`` as bytes ``[…, n·bits/8]``, the first lowest."""
    parts = torch.unflatten(values & (2**bits - 1), -1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    found: Bytes = (parts << shifts).sum(-1, dtype=torch.uint8).numpy()
    return found


def stacked(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """Weights of one format and width below one another."""
    first = parts[0]
    grid = {field: torch.cat([q.grid[field] for q in parts]) for field in first.grid}
    return QuantizedTensor(first.format, torch.cat([q.codes for q in parts]), grid)


def low_plane(q: QuantizedTensor, how: Layout) -> Bytes:
    """The low 2 bits of 3-bit codes, ``[out, blocks, size/4]``: with the codes as nibbles two to a
    byte, byte i has those of byte i in bits 0, 1, 4, 5, and those of byte i + size/4 between."""
    first, second = _nibbles(q, how, 0x33).chunk(2, -1)
    found: Bytes = (first | second << 2).numpy()
    return found


def high_plane(q: QuantizedTensor, how: Layout) -> Bytes:
    """Their high bits, ``[out, blocks, size/8]``, four bytes' in one."""
    parts = _nibbles(q, how, 0x44).chunk(4, -1)
    found: Bytes = (parts[0] >> 2 | parts[1] >> 1 | parts[2] | parts[3] << 1).numpy()
    return found


def _nibbles(q: QuantizedTensor, how: Layout, mask: int) -> Tensor:
    blocks = torch.unflatten(q.codes, 1, (-1, how.size))
    return (blocks[..., ::2] | blocks[..., 1::2] << 4) & mask
