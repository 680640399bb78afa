"""IQ2_NL: 32 columns, d·(4 levels, dense near 0), 2.5 bits; not in llama.cpp yet.

Layout, levels and number as in ggml-org/llama.cpp pull request 27322, branch iq2_nl-iq3_nl-cpu of
EAddario/llama.cpp at f42856ea: ``ggml-common.h``, ``ggml.h``, ``dequantize_row_iq2_nl``.
"""

import torch

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import number
from edgepack.formats._levels import Table
from edgepack.formats._scalar import OneScale, level_probes

LEVELS = Table(-127, -49, 9, 88)


class Proposed(OneScale):
    """A type that is proposed for llama.cpp; its number may be another one in the end."""

    waits = "llama.cpp does not have it yet (pull request 27322), and may change it"
    in_ggml = False


PLUGIN = Proposed(
    "iq2_nl",
    number("IQ2_NL"),
    LEVELS,
    Layout((Half("d"), Plane(("codes",), 32, bits=2, run=8))),
    size=32,
    probes=level_probes(LEVELS.values, torch.linspace(0.6, 3.0, 25), group=3),
)
