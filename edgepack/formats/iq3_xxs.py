"""IQ3_XXS: 8 × 32 columns, 256 points of four magnitudes, signs even in eight, 3.0625 bits."""

from edgepack.formats._bits import Half, Layout, Plane, Words
from edgepack.formats._codebook import Codebook, Points
from edgepack.formats._ggml import GGMLQuantizationType

PLUGIN = Codebook(
    "iq3_xxs",
    GGMLQuantizationType.IQ3_XXS,
    Points.from_gguf("IQ3_XXS"),
    Layout(
        (
            Half("d"),
            Plane(("index",), 64, bits=8, run=1),
            Words((("signs", 7, 4), ("scales", 4, 1)), 8),
        )
    ),
    unit=32,
    factor=1 / 4,
    even_signs=True,
)
