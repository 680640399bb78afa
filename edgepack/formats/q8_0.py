"""Q8_0: 32 columns, d·(code − 128), 8.5 bits; the file holds signed bytes."""

import torch

from edgepack.formats._bits import Half, Layout, Plane, Stored
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale, level_probes

PLUGIN = OneScale(
    "q8_0",
    GGMLQuantizationType.Q8_0,
    Uniform(-128, 127),
    Layout(
        (Half("d"), Plane(("codes",), 32, bits=8, run=32)),
        {"codes": Stored(torch.uint8, bias=-128)},
    ),
    size=32,
    # Positive scales only: a negative one gains one level of 256.
    probes=level_probes(torch.arange(1.0, 128.0), torch.linspace(0.98, 1.02, 17), group=4),
)
