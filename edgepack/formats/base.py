"""The interface of formats: fit a grid, encode, decode; llama.cpp's also pack to bytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgepack.core.weights import AT_ONCE, Grid, QuantizedTensor, row_slices
from edgepack.formats._limits import LARGEST, check_finite

if TYPE_CHECKING:
    from edgepack.formats._exact import Near


class Format(ABC):
    """Codes in blocks of columns that share scales.

    All tensors are float32 unless said otherwise. Rows are independent, so every method is
    vectorised over them. A tensor ``[out, in]`` has ``in / block_size`` blocks a row; grid fields
    are ``[out, blocks, …]``.
    """

    name: str
    block_size: int
    """Columns per block; a row's length must be a multiple of it."""
    group: int = 1
    """Columns encoded together (vector codebooks: 8 or 4)."""
    largest: float = LARGEST
    """Weights with a larger |value| are clipped."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Stored bits per element, scales included."""

    def fits(self, columns: int) -> bool:
        """Whether rows of that length can be stored."""
        return columns % self.block_size == 0

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of that shape (last dimension = columns)."""

    @abstractmethod
    def fit(self, x: Tensor, importance: Tensor) -> Grid:
        """The grid that minimises Σ importance·(x − nearest grid point)² block by block.

        x ``[out, k·block_size]``; importance ``[in]`` or ``[out, in]``, ≥ 0. Returned fields are
        already rounded to what the file stores (fp16 scales, 4- and 6-bit sub-scales).
        """

    @abstractmethod
    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """Nearest codes for x ``[out, width of columns]``: the columns `columns` of the tensor that
        `grid` was fitted to. Their start and stop are multiples of `group`."""

    @abstractmethod
    def decode(self, codes: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """Values of codes ``[out, width of columns]``. The order of float32 operations is the
        runtime's, so that they equal its dequantization bit for bit."""

    def recover(self, near: Near) -> tuple[Grid, Tensor]:
        """Grids on which blocks of values already lie, and which blocks have one, bool ``[n]``;
        fields of the grid are ``[n, …]`` (`_exact`). A format that does not look finds none."""
        return {}, torch.zeros(len(near.x), dtype=torch.bool)

    def quantize(self, W: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Plain rounding: fit, then nearest codes; without `importance` every column counts 1."""
        check_finite("the weight", W)
        check_finite("the importance of its columns", importance)
        if importance is None:
            importance = torch.ones(W.shape[-1])
        grid = self.fit(W, importance)
        codes = [
            self.encode(W[rows], {field: values[rows] for field, values in grid.items()})
            for rows in row_slices(W.shape)
        ]
        return QuantizedTensor(self.name, codes[0] if len(codes) == 1 else torch.cat(codes), grid)

    def quantize_anywhere(self, W: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """`quantize` on the CPU, whose loops it takes, for W on any device; the result is there.

        Sums are rounded otherwise where numbers do not lie side by side, as on a diagonal.
        """
        importance = None if importance is None else importance.cpu().contiguous()
        return self.quantize(W.cpu().contiguous(), importance).to(W.device)


class GgmlFormat(Format):
    """A block type of ggml, as stored in GGUF files."""

    type_size: int
    """Bytes per block."""
    ggml_type: int
    """The type's number in ``enum ggml_type``."""
    waits: str = ""
    """Why stock runtimes cannot be counted on to read it, for people. A type that waits is written
    only if the recipe allows experimental types."""
    in_ggml: bool = True
    """Whether the ggml that edgepack is installed with has it."""

    @property
    def bits_per_weight(self) -> float:
        """See `Format`."""
        return 8 * self.type_size / self.block_size

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """See `Format`."""
        return math.prod(shape) // self.block_size * self.type_size

    @abstractmethod
    def pack(self, q: QuantizedTensor) -> Tensor:
        """GGUF bytes, uint8 ``[out, in / block_size · type_size]``."""

    def pack_by_rows(self, q: QuantizedTensor) -> Tensor:
        """What `pack` gives, some rows at a time: it computes with integers wider than codes."""
        if q.codes.numel() <= AT_ONCE:
            return self.pack(q)
        rows, columns = q.shape
        out = torch.empty(rows, self.nbytes((1, columns)), dtype=torch.uint8)
        for part in row_slices(q.shape):
            out[part] = self.pack(q.permute_rows(part))
        return out

    @abstractmethod
    def parse(self, data: Tensor) -> QuantizedTensor:
        """Inverse of `pack`: ``pack(parse(data)) == data`` for any stock-quantized bytes."""
