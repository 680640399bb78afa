"""Q5_K: 8 × 32 columns, d·scale₆·code − dmin·min₆, 5.5 bits; the fifth bits apart."""

from edgepack.formats._bits import Half, Layout, Plane, SixBitPairs
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScaleMin
from edgepack.formats._levels import Uniform

PLUGIN = KScaleMin(
    "q5_k",
    GGMLQuantizationType.Q5_K,
    top=31,
    layout=Layout(
        (
            Half("d"),
            Half("dmin"),
            SixBitPairs(),
            Plane(("codes",), 256, bits=1, run=32, shift=4),
            Plane(("codes",), 256, bits=4, run=32),
        )
    ),
    unit=32,
    scales=Uniform(0, 63),
)
