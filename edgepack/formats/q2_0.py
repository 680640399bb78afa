"""Q2_0: 64 columns, d·{−1, 0, 1, 2}, 2.25 bits: ternary with one more level on the side of d."""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Uniform(-1, 2)

PLUGIN = OneScale(
    "q2_0",
    GGMLQuantizationType.Q2_0,
    LEVELS,
    Layout((Half("d"), Plane(("codes",), 64, bits=2, run=1))),
    size=64,
    probes=level_probes(LEVELS.values, torch.linspace(0.6, 3.0, 25), group=3),
)
