"""IQ4_XS: 8 × 32 columns, d·scale₆·(16 levels, dense near 0) with signed scales, 4.25 bits."""

import torch

from edgepack.formats._bits import Half, Layout, Plane, Stored
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScale
from edgepack.formats._levels import Uniform
from edgepack.formats.iq4_nl import LEVELS

PLUGIN = KScale(
    "iq4_xs",
    GGMLQuantizationType.IQ4_XS,
    LEVELS,
    Layout(
        (
            Half("d"),
            Plane(("scales",), 8, bits=2, run=1, shift=4),
            Plane(("scales",), 8, bits=4, run=1),
            Plane(("codes",), 256, bits=4, run=16),
        ),
        {"scales": Stored(torch.int8, bias=32)},
    ),
    unit=32,
    scales=Uniform(-32, 31),
)
