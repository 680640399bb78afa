"""IQ3_S: 8 × 32 columns, 512 points of four magnitudes, 3.4375 bits."""

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._codebook import WIDE, Codebook, Points
from edgepack.formats._ggml import GGMLQuantizationType

PLUGIN = Codebook(
    "iq3_s",
    GGMLQuantizationType.IQ3_S,
    Points.from_gguf("IQ3_S"),
    Layout(
        (
            Half("d"),
            Plane(("index",), 64, bits=8, run=1),
            Plane(("index",), 64, bits=1, run=1, shift=8),
            Plane(("signs",), 32, bits=8, run=1),
            Plane(("scales",), 8, bits=4, run=1),
        ),
        {"index": WIDE},
    ),
    unit=32,
    factor=1,
    even_signs=False,
)
