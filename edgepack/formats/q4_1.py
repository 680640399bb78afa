"""Q4_1: 32 columns, d·code + m, 5 bits."""

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._scalar import ScaleMin

PLUGIN = ScaleMin(
    "q4_1",
    GGMLQuantizationType.Q4_1,
    top=15,
    layout=Layout((Half("d"), Half("m"), Plane(("codes",), 32, bits=4, run=16))),
    size=32,
)
