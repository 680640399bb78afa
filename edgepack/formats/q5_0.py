"""Q5_0: 32 columns, d·(code − 16), 5.5 bits; the fifth bits in a word of their own."""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Uniform(-16, 15)

PLUGIN = OneScale(
    "q5_0",
    GGMLQuantizationType.Q5_0,
    LEVELS,
    Layout(
        (
            Half("d"),
            Plane(("codes",), 32, bits=1, run=1, shift=4),
            Plane(("codes",), 32, bits=4, run=16),
        )
    ),
    size=32,
    probes=level_probes(LEVELS.values, torch.linspace(0.85, 1.2, 15), group=3),
)
