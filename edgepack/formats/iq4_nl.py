"""IQ4_NL: 32 columns, d·(16 levels, dense near 0), 4.5 bits."""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Table
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Table(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""llama.cpp's ``kvalues_iq4nl``."""

PLUGIN = OneScale(
    "iq4_nl",
    GGMLQuantizationType.IQ4_NL,
    LEVELS,
    Layout((Half("d"), Plane(("codes",), 32, bits=4, run=16))),
    size=32,
    probes=level_probes(LEVELS.values, torch.linspace(0.8, 1.3, 15), group=2),
)
