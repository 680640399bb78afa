"""Q5_1: 32 columns, d·code + m, 6 bits; the fifth bits in a word of their own."""

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._scalar import ScaleMin

PLUGIN = ScaleMin(
    "q5_1",
    GGMLQuantizationType.Q5_1,
    top=31,
    layout=Layout(
        (
            Half("d"),
            Half("m"),
            Plane(("codes",), 32, bits=1, run=1, shift=4),
            Plane(("codes",), 32, bits=4, run=16),
        )
    ),
    size=32,
)
