"""Values that are not finite are refused where they first appear."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.errors import CalibrationError


def check_finite(
    values: Tensor,
    place: str,
    weights: Mapping[str, Tensor],
    family: Architecture,
    block: int | None = None,
) -> None:
    """Refuse NaN and infinity among the `values` that `place` computed with `weights` (by role, of
    a `block` or outside). The error names a weight that is not finite, if there is one."""
    if torch.isfinite(values).all():
        return
    for role, weight in weights.items():
        count = int((~torch.isfinite(weight)).sum())
        if count:
            raise CalibrationError(
                f"{place}: {family.hf_name(role, block)} has {count} values that are not finite "
                "(NaN or infinite)",
                hint="the checkpoint is damaged, or its training diverged",
            )
    raise CalibrationError(
        f"{place}: computes values that are not finite, with weights that are",
        hint="the model overflows on the calibration text; try another text",
    )
