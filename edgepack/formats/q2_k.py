"""Q2_K: 16 × 16 columns, d·scale₄·code − dmin·min₄, 2.625 bits."""

from edgepack.formats._bits import Half, Layout, Plane
from edgepack.formats._ggml import GGMLQuantizationType
from edgepack.formats._k_quant import KScaleMin
from edgepack.formats._levels import Uniform

PLUGIN = KScaleMin(
    "q2_k",
    GGMLQuantizationType.Q2_K,
    top=3,
    layout=Layout(
        (
            Plane(("scales", "mins"), 32, bits=4, run=16),
            Plane(("codes",), 256, bits=2, run=32),
            Half("d"),
            Half("dmin"),
        )
    ),
    unit=16,
    scales=Uniform(0, 15),
)
