"""Q4_0: 32 columns, d·(code − 8), 4.5 bits."""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Uniform(-8, 7)

PLUGIN = OneScale(
    "q4_0",
    GGMLQuantizationType.Q4_0,
    LEVELS,
    Layout((Half("d"), Plane(("codes",), 32, bits=4, run=16))),
    size=32,
    probes=level_probes(LEVELS.values, torch.linspace(0.8, 1.3, 13), group=2),
)
