"""IQ3_NL: 32 columns, d·(8 levels, dense near 0), 3.5 bits; not in llama.cpp yet (see `iq2_nl`).

The third bits come first: bit j of byte g is that of column 8·g + j.
"""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import number
from edgepack.formats._levels import Table
from edgepack.formats._scalar import level_probes
from edgepack.formats.iq2_nl import Proposed

LEVELS = Table(-127, -78, -45, -18, 3, 30, 62, 107)

PLUGIN = Proposed(
    "iq3_nl",
    number("IQ3_NL"),
    LEVELS,
    Layout(
        (
            Half("d"),
            Plane(("codes",), 32, bits=1, run=1, shift=2),
            Plane(("codes",), 32, bits=2, run=8),
        )
    ),
    size=32,
    probes=level_probes(LEVELS.values, torch.linspace(0.7, 1.6, 25), group=2),
)
