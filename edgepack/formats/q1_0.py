"""Q1_0: 128 columns, ±d, 1.125 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.weights import Grid
from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Table
from edgepack.formats._scalar import BlockScalar
from edgepack.formats._search import dot, half, ratio


class Signs(BlockScalar):
    """x ≈ d·sign(x): the signs are the same for every d > 0, so the best d is the mean of |x|.

    The other candidates are for the sweep: error feedback makes later columns larger.
    """

    factors = torch.tensor([1.0, 1.06, 0.94, 1.12, 0.88, 1.2])

    def _propose(self, x: Tensor, w: Tensor) -> Grid:
        mean = ratio(dot(w, x.abs()), w.sum(-1))
        return {"d": half(mean[:, None] * self.factors).to(torch.float16)}


PLUGIN = Signs(
    "q1_0",
    GGMLQuantizationType.Q1_0,
    Table(-1, 1),
    Layout((Half("d"), Plane(("codes",), 128, bits=1, run=1))),
    size=128,
)
