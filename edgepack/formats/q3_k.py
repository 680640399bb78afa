"""Q3_K: 16 × 16 columns, d·scale₆·(code − 4) with signed scales, 3.4375 bits."""

import torch

from edgepack.formats._bits import Half, Layout, Plane, Stored
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScale
from edgepack.formats._levels import Uniform

PLUGIN = KScale(
    "q3_k",
    GGMLQuantizationType.Q3_K,
    Uniform(-4, 3),
    Layout(
        (
            Plane(("codes",), 256, bits=1, run=32, shift=2),
            Plane(("codes",), 256, bits=2, run=32),
            Plane(("scales",), 16, bits=4, run=8),
            Plane(("scales",), 16, bits=2, run=4, shift=4),
            Half("d"),
        ),
        {"scales": Stored(torch.int8, bias=32)},
    ),
    unit=16,
    scales=Uniform(-32, 31),
)
