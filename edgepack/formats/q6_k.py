"""Q6_K: 16 × 16 columns, d·scale₈·(code − 32) with signed scales, 6.5625 bits."""

import torch

from edgepack.formats._bits import Half, Layout, Plane, Stored
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScale
from edgepack.formats._levels import Uniform

PLUGIN = KScale(
    "q6_k",
    GGMLQuantizationType.Q6_K,
    Uniform(-32, 31),
    Layout(
        (
            Plane(("codes",), 256, bits=4, run=64),
            Plane(("codes",), 256, bits=2, run=32, shift=4),
            Plane(("scales",), 16, bits=8, run=16),
            Half("d"),
        ),
        {"scales": Stored(torch.int8)},
    ),
    unit=16,
    scales=Uniform(-128, 127),
)
