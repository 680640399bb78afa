"""The inverse of `_onnx_pack`: initializers as codes and grids."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import QuantizedTensor
from edgepack.export._onnx_pack import Layout


def blocks(
    name: str, layout: Layout, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> QuantizedTensor:
    """A tensor of MatMulNBits: codes ``[out, blocks, bytes]``, scales ``[out, blocks]``, packed
    zero points ``[out, bytes]`` if any. `name` is the format's."""
    values = _unpacked(codes, layout.bits).flatten(1)
    z = None if zeros is None else _unpacked(zeros, layout.computed)[:, : scales.shape[1]]
    return _tensor(name, layout, values, scales, z)


def planes(
    name: str, layout: Layout, low: Tensor, high: Tensor, scales: Tensor, zeros: Tensor | None
) -> QuantizedTensor:
    """The same for 3-bit codes in planes; see `_onnx_pack.low_plane` and `high_plane`."""
    lows = torch.cat([low & 0x33, low >> 2 & 0x33], -1)
    highs = torch.cat([high << 2 & 0x44, high << 1 & 0x44, high & 0x44, high >> 1 & 0x44], -1)
    values = _unpacked(lows | highs, 4).flatten(1)
    z = None if zeros is None else _unpacked(zeros, layout.computed)[:, : scales.shape[1]]
    return _tensor(name, layout, values, scales, z)


def columns(
    name: str, layout: Layout, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> QuantizedTensor:
    """A tensor of DequantizeLinear: codes ``[in, out]`` (4 bits: two to a byte in one row), scales
    ``[blocks, out]``, zero points like codes if any."""
    count, rows = scales.shape
    shape = (count * layout.size, rows)
    values = _turned(codes, layout, shape)
    if not layout.zeros:  # the middle of the range was subtracted, in two's complement
        values = (values ^ 2 ** (layout.bits - 1)) & (2**layout.bits - 1)
    z = None if zeros is None else _turned(zeros, layout, (count, rows))
    return _tensor(name, layout, values, scales.T.contiguous(), z)


def whole_rows(name: str, codes: Tensor, scales: Tensor) -> QuantizedTensor:
    """A tensor of MatMulInteger: codes ``[in, out]``, scales ``[out]``."""
    return QuantizedTensor(name, codes.T.contiguous(), {"d": scales[:, None]})


def _tensor(
    name: str, layout: Layout, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> QuantizedTensor:
    if layout.mirrored:
        codes, scales = 2**layout.bits - 1 - codes, -scales
    grid = {"d": scales} | ({} if zeros is None else {"z": zeros})
    return QuantizedTensor(name, codes.contiguous(), grid)


def _turned(values: Tensor, layout: Layout, shape: tuple[int, int]) -> Tensor:
    if layout.bits == 4:
        values = _unpacked(values.view(torch.uint8), 4)[: shape[0] * shape[1]]
    return values.view(torch.uint8).reshape(shape).T.contiguous()


def _unpacked(data: Tensor, bits: int) -> Tensor:
    """Bytes ``[…, n]`` as values of `bits` bits ``[…, n·8/bits]``, the lowest bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    values: Tensor = data[..., None] >> shifts & 2**bits - 1
    return values.flatten(-2)
