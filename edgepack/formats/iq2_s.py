"""IQ2_S: 16 × 16 columns, 1024 points of eight magnitudes, 2.5625 bits."""

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._codebook import WIDE, Codebook, Points
from edgepack.formats._ggml import GGMLQuantizationType

PLUGIN = Codebook(
    "iq2_s",
    GGMLQuantizationType.IQ2_S,
    Points.from_gguf("IQ2_S"),
    Layout(
        (
            Half("d"),
            Plane(("index",), 32, bits=8, run=1),
            Plane(("signs",), 32, bits=8, run=1),
            Plane(("index",), 32, bits=2, run=1, shift=8),
            Plane(("scales",), 16, bits=4, run=1),
        ),
        {"index": WIDE},
    ),
    unit=16,
    factor=1 / 8,
    even_signs=False,
)
