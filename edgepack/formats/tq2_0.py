"""TQ2_0: 256 columns, d·{−1, 0, 1}, 2.0625 bits.

Two bits have a fourth code. Today's kernels read it as 2·d, but llama.cpp says that it should not
occur (``ggml_vec_dot_tq2_0_q8_K``), so it is not used.
"""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._levels import Uniform
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Uniform(-1, 1)

PLUGIN = OneScale(
    "tq2_0",
    GGMLQuantizationType.TQ2_0,
    LEVELS,
    Layout((Plane(("codes",), 256, bits=2, run=32), Half("d"))),
    size=256,
    probes=level_probes(LEVELS.values, torch.linspace(1.0, 5.0, 41), group=3),
)
