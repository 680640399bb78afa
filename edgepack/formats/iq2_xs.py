"""IQ2_XS: 16 × 16 columns, 512 points of eight magnitudes with even signs, 2.3125 bits."""

from edgepack.formats._bits import Half, Layout, Plane, Words
from edgepack.formats._codebook import WIDE, Codebook, Points
from edgepack.formats._ggml import GGMLQuantizationType

PLUGIN = Codebook(
    "iq2_xs",
    GGMLQuantizationType.IQ2_XS,
    Points.from_gguf("IQ2_XS"),
    Layout(
        (
            Half("d"),
            Words((("index", 9, 1), ("signs", 7, 1)), 32),
            Plane(("scales",), 16, bits=4, run=1),
        ),
        {"index": WIDE},
    ),
    unit=16,
    factor=1 / 8,
    even_signs=True,
)
