"""IQ2_XXS: 8 × 32 columns, 256 points of eight magnitudes with even signs, 2.0625 bits."""

from edgepack.formats._bits import Half, Layout, Words
from edgepack.formats._codebook import Codebook, Points
from edgepack.formats._ggml import GGMLQuantizationType

PLUGIN = Codebook(
    "iq2_xxs",
    GGMLQuantizationType.IQ2_XXS,
    Points.from_gguf("IQ2_XXS"),
    Layout((Half("d"), Words((("index", 8, 4), ("signs", 7, 4), ("scales", 4, 1)), 8))),
    unit=32,
    factor=1 / 8,
    even_signs=True,
)
