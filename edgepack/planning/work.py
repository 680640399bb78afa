"""What a token will ask of a machine, from the model's headers and the formats of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepack import formats
from edgepack.device_profile.profile import Work
from edgepack.planning.formats import weight_bytes

if TYPE_CHECKING:
    from edgepack.checkpoint import Checkpoint
    from edgepack.core.weights import WeightFormat, WeightSpec

PLAIN = "f32"
"""The type of norms and biases."""


def work_of(model: Checkpoint, chosen: Mapping[str, WeightFormat]) -> Work:
    """Bytes of a decoded token by type (all matrices, one row of the embedding), and operations.

    The same that `edgepack bench` finds in the header of a finished GGUF file.
    """
    specs = model.specs.values()
    embedding = next(spec for spec in specs if spec.role == "token_embd")
    head = next((spec for spec in specs if spec.role == "output"), embedding)
    types: dict[str, int] = {}
    factors: dict[str, int] = {}
    products = 0
    for spec in specs:
        fmt = chosen.get(spec.name)
        if spec is embedding:
            _add(types, fmt, weight_bytes(spec, fmt) // spec.shape[0])
        if spec is not embedding or head is embedding:
            _add(types, fmt, weight_bytes(spec, fmt))
        if spec.is_matrix and spec not in (embedding, head):
            products += spec.numel
        if fmt is not None and fmt.rank:
            products += fmt.rank * sum(spec.shape)
            _add_factors(factors, spec, fmt)
    return Work(
        types=types,
        factor_types=factors,
        flops=2 * products,
        head=2 * head.numel,
        head_type=chosen[head.name].Q,
    )


def _add(types: dict[str, int], fmt: WeightFormat | None, count: int) -> None:
    kind = PLAIN if fmt is None else fmt.Q
    types[kind] = types.get(kind, 0) + count


def _add_factors(factors: dict[str, int], spec: WeightSpec, fmt: WeightFormat) -> None:
    """Add the bytes of L and R."""
    rows, columns = spec.shape
    for kind, shape in ((fmt.L, (rows, fmt.rank)), (fmt.R, (fmt.rank, columns))):
        assert kind is not None
        factors[kind] = factors.get(kind, 0) + formats.get(kind).nbytes(shape)
