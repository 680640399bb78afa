"""F16: the values themselves, in half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.formats._base import GgmlFormat
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._search import FP16_MAX
from edgepack.weights import Grid, QuantizedTensor


class F16(GgmlFormat):
    """No grid; codes are the float16 values ``[out, in]``."""

    name = "f16"
    block_size = 1
    type_size = 2
    ggml_type = int(GGMLQuantizationType.F16)

    def fit(self, x: Tensor, importance: Tensor) -> Grid:
        """See `Format`: there is nothing to fit."""
        return {}

    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`; what overflows becomes the largest float16."""
        return x.clamp(-FP16_MAX, FP16_MAX).to(torch.float16)

    def decode(self, codes: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`."""
        return codes.to(torch.float32)

    def pack(self, q: QuantizedTensor) -> Tensor:
        """See `Format`."""
        return q.codes.contiguous().view(torch.uint8)

    def parse(self, data: Tensor) -> QuantizedTensor:
        """See `Format`."""
        return QuantizedTensor(self.name, data.contiguous().view(torch.float16), {})


PLUGIN = F16()
