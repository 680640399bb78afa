"""F16: the values themselves, in half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.errors import DecompositionError
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._limits import check_finite
from edgepack.formats._search import FP16_MAX
from edgepack.formats.base import GgmlFormat

LOSS = 1e-3
"""Relative error, ‖W − f16(W)‖ / ‖W‖, above which float16 does not hold W; rounding alone costs
3e-4 at most."""
_ROWS = 4096  # rows converted at once, so that no second copy of an embedding is in memory


def holds(W: Tensor) -> bool:
    """Whether float16 holds W: no value overflows, and the relative error is at most `LOSS`."""
    lost = total = 0.0
    for part in torch.split(W, _ROWS):
        exact = part.double()
        rounded = part.to(torch.float16)
        if not torch.isfinite(rounded).all():
            return False
        lost += float((exact - rounded).square().sum())
        total += float(exact.square().sum())
    return lost <= LOSS**2 * total


class F16(GgmlFormat):
    """No grid; codes are the float16 values ``[out, in]``."""

    name = "f16"
    block_size = 1
    type_size = 2
    ggml_type = int(GGMLQuantizationType.F16)

    def quantize(self, W: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """See `Format`; values beyond the largest float16 are refused, not clipped."""
        check_finite("the weight", W)
        largest = float(W.abs().max()) if W.numel() else 0.0
        if not largest <= FP16_MAX:
            raise DecompositionError(
                f"values up to {largest:.3g} do not fit float16, which ends at {FP16_MAX:.0f}",
                hint="choose a format with scales, such as q8_0 (compress.overrides)",
            )
        return super().quantize(W, importance)

    def fit(self, x: Tensor, importance: Tensor) -> Grid:
        """See `Format`; the grid is empty."""
        return {}

    def encode(self, x: Tensor, grid: Grid, columns: slice = slice(None)) -> Tensor:
        """See `Format`; `quantize` has refused values that would overflow."""
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
