"""What the weights of a source have lost before edgepack reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgepack.core.weights import WeightSpec
from edgepack.formats._ggml import GGML_QUANT_SIZES, GGMLQuantizationType

WHOLE = ("F64", "F32", "F16", "BF16")
SMALL = 0.01
"""Share of the weights from which a type is named."""
BITS = {"F8_E4M3": 8.0, "F8_E5M2": 8.0}


def warning(specs: Iterable[WeightSpec], place: str) -> tuple[str, ...]:
    """A warning that names the types of a model's matrices if some are rounded already."""
    sizes: Counter[str] = Counter()
    for spec in specs:
        if len(spec.shape) > 1:
            sizes[spec.dtype] += spec.numel
    least = SMALL * sizes.total()
    types = [name for name, n in sizes.most_common() if name not in WHOLE and n >= least]
    if not types:
        return ()
    named = ", ".join(f"{name} ({bits(name):.3g} bits)" for name in types)
    return (
        f"{place}: its weights are rounded already, to {named}; what that lost stays lost, and the "
        "KL is measured from these values: an unquantized checkpoint makes a better model",
    )


def bits(dtype: str) -> float:
    """Bits of a weight of a type, its scales included where the type has them."""
    if dtype in BITS:
        return BITS[dtype]
    columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return float(8 * size / columns)
