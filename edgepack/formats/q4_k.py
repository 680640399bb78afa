"""Q4_K: 8 × 32 columns, d·scale₆·code − dmin·min₆, 4.5 bits."""

from edgepack.formats._bits import Half, Layout, Plane, SixBitPairs
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScaleMin
from edgepack.formats._levels import Uniform

PLUGIN = KScaleMin(
    "q4_k",
    GGMLQuantizationType.Q4_K,
    top=15,
    layout=Layout((Half("d"), Half("dmin"), SixBitPairs(), Plane(("codes",), 256, bits=4, run=32))),
    unit=32,
    scales=Uniform(0, 63),
)
