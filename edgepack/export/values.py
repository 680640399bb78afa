"""Values that exporters refuse to write, and the formats of a model that is not packed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import ExportError
from edgepack.formats import f16

F32 = "f32"
"""The name of float32 in place of a format's name; recipes cannot ask for it."""


def plain_formats(checkpoint: Checkpoint) -> dict[str, str]:
    """f16 for every matrix, f32 for those that float16 does not hold; reads all of them."""
    names = [spec.name for spec in checkpoint.specs.values() if spec.is_matrix]
    return {name: "f16" if f16.holds(checkpoint.tensor(name)) else F32 for name in names}


def check_finite(name: str, value: Tensor | NDArray[np.generic] | QuantizedTensor) -> None:
    """Refuse to write a tensor with NaN or infinity."""
    if not _is_finite(value):
        raise ExportError(
            f"{name}: has values that are not finite numbers",
            hint="the weights of the model, or of its training, are damaged",
        )


def _is_finite(value: Tensor | NDArray[np.generic] | QuantizedTensor) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all()) if value.is_floating_point() else True
    if isinstance(value, QuantizedTensor):
        return all(_is_finite(field) for field in (value.codes, *value.grid.values()))
    return not np.issubdtype(value.dtype, np.floating) or bool(np.isfinite(value).all())
