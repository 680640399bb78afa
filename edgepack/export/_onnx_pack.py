"""Codes and grids as the initializers of MatMulNBits and GatherBlockQuantized.

Both hold ``d·(code − z)`` with 2, 4 or 8 bits a code, the first code in the lowest bits. Stock GGUF
types on such a grid keep their codes. 3-bit codes are stored as planes of 2 and 1 bits, which a
session joins to 4 bits when it loads (constant folding).
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
"""Formats without blocks: f16 for MatMul, int8 for MatMulInteger."""


@dataclass(frozen=True)
class Layout:
    """How ONNX stores a format: `bits` a code, blocks of `size` columns, and whether each block has
    a zero point (`zeros`; otherwise zero is the middle of the range, 2^(bits−1)). With `mirrored`,
    d and the codes are negated, which moves a zero from one below the middle to the middle."""

    bits: int
    size: int
    zeros: bool
    mirrored: bool = False

    @property
    def computed(self) -> int:
        """Bits that the runtime computes with."""
        return COMPUTED[self.bits]


def find_layout(fmt: Format) -> Layout | None:
    """The layout of a format; None if ONNX has no such grid, or no fast kernel for it."""
    if isinstance(fmt, Integer):
        return Layout(fmt.bits, fmt.block_size, zeros=bool(fmt.zero_bits))
    if not isinstance(fmt, OneScale) or not isinstance(fmt.code_levels, Uniform):
        return None
    bits = (len(fmt.levels) - 1).bit_length()
    if bits not in COMPUTED or fmt.block_size not in BLOCKS.get(bits, BLOCKS[4]):
        return None
    below = 2 ** (bits - 1) + fmt.code_levels.low
    return Layout(bits, fmt.block_size, zeros=False, mirrored=below == 1) if below < 2 else None


def layout_of(name: str) -> Layout | None:
    """`find_layout` by a format's name; None for float32, which is no format."""
    return None if name == F32 else find_layout(plugins.find("formats", name))


def codes(q: QuantizedTensor, layout: Layout) -> Bytes:
    """Packed codes ``[out, blocks, size·bits/8]``."""
    blocks = torch.unflatten(q.codes, 1, (-1, layout.size))
    return _packed(2**layout.bits - 1 - blocks if layout.mirrored else blocks, layout.bits)


def zeros(q: QuantizedTensor, layout: Layout) -> Bytes:
    """Zero points ``[out, ⌈blocks·bits/8⌉]``, packed as codes are."""
    z = q.grid["z"]
    missing = -z.shape[1] % (8 // layout.computed)
    return _packed(torch.nn.functional.pad(z, (0, missing)), layout.computed)


def scales(q: QuantizedTensor, layout: Layout) -> NDArray[np.float16]:
    """Scales ``[out, blocks]``."""
    d = q.grid["d"].contiguous()
    found: NDArray[np.float16] = (-d if layout.mirrored else d).numpy()
    return found


def columns(q: QuantizedTensor, layout: Layout) -> NDArray[np.int8 | np.uint8]:
    """Codes transposed to ``[in, out]`` for DequantizeLinear. 4-bit codes are packed two to a byte
    in one row. Without zero points, the middle of the range is subtracted."""
    turned = q.codes.T.flatten()
    if not layout.zeros:
        turned = turned ^ 2 ** (layout.bits - 1)  # as two's complement
    return _turned(turned, layout, (q.codes.shape[1], q.codes.shape[0]))


def column_zeros(q: QuantizedTensor, layout: Layout) -> NDArray[np.int8 | np.uint8]:
    """Zero points transposed in the same way, ``[blocks, out]``."""
    z = q.grid["z"]
    return _turned(z.T.flatten(), layout, (z.shape[1], z.shape[0]))


def _turned(values: Tensor, layout: Layout, shape: tuple[int, int]) -> NDArray[np.int8 | np.uint8]:
    if layout.bits == 4:
        flat: NDArray[np.uint8] = _packed(torch.nn.functional.pad(values, (0, len(values) % 2)), 4)
    else:
        flat = values.numpy().reshape(shape)
    return flat if layout.zeros else flat.view(np.int8)


def _packed(values: Tensor, bits: int) -> Bytes:
    """Low `bits` of values ``[…, n]`` as bytes ``[…, n·bits/8]``, the first in the lowest bits."""
    parts = torch.unflatten(values & (2**bits - 1), -1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    found: Bytes = (parts << shifts).sum(-1, dtype=torch.uint8).numpy()
    return found


def stack(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """Concatenate the rows of weights of one format and width."""
    first = parts[0]
    grid = {field: torch.cat([q.grid[field] for q in parts]) for field in first.grid}
    return QuantizedTensor(first.format, torch.cat([q.codes for q in parts]), grid)


def low_plane(q: QuantizedTensor, layout: Layout) -> Bytes:
    """The low 2 bits of 3-bit codes, ``[out, blocks, size/4]``. Let the codes be nibbles, two to a
    byte: byte i holds the bits of byte i in bits 0, 1, 4, 5, and those of byte i + size/4 in bits
    2, 3, 6, 7."""
    first, second = _nibbles(q, layout, 0x33).chunk(2, -1)
    found: Bytes = (first | second << 2).numpy()
    return found


def high_plane(q: QuantizedTensor, layout: Layout) -> Bytes:
    """The high bits of 3-bit codes, ``[out, blocks, size/8]``; each byte holds those of four."""
    parts = _nibbles(q, layout, 0x44).chunk(4, -1)
    found: Bytes = (parts[0] >> 2 | parts[1] >> 1 | parts[2] | parts[3] << 1).numpy()
    return found


def _nibbles(q: QuantizedTensor, layout: Layout, mask: int) -> Tensor:
    blocks = torch.unflatten(q.codes, 1, (-1, layout.size))
    return (blocks[..., ::2] | blocks[..., 1::2] << 4) & mask
