"""What other ONNX exporters make of the same model: plain rounding, on every grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgepack import formats
from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat
from edgepack.planning.formats import UNQUANTIZED

EMBEDDINGS = "q8_0"


def every(
    model: Checkpoint, chosen: Mapping[str, WeightFormat], ladder: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Label and types of each graph."""
    specs = [model.specs[name] for name in chosen]
    kept = {n: fmt.Q for n, fmt in chosen.items() if model.specs[n].role in UNQUANTIZED}
    for name in ladder:
        fmt = formats.get(name)
        if not all(fmt.fits(spec.shape[1]) for spec in specs if spec.block is not None):
            continue
        smaller = fmt.bits_per_weight < formats.get(EMBEDDINGS).bits_per_weight
        small = smaller and all(fmt.fits(spec.shape[1]) for spec in specs)
        for outside in (EMBEDDINGS, name) if small else (EMBEDDINGS,):
            types = {s.name: outside if s.block is None else name for s in specs}
            yield f"plain {name}, embeddings {outside}", {**types, **kept}
