"""Files of Hessians as a calibration leaves them, written without it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgepack.core.weights import Hessian


def packed(H: Tensor) -> Tensor:
    """The upper triangle, row after row."""
    return H.float()[tuple(torch.triu_indices(*H.shape))]


def save_hessian(path: Path, name: str, H: Hessian) -> None:
    """The file of one weight."""
    tensors = {f"{name}.imatrix": H.imatrix.float()}
    for part in ("train", "held_out", "out_train", "out_held_out"):
        side = getattr(H, part)
        if side is not None and side.dim() == 2:
            tensors[f"{name}.{part}"] = packed(side)
        elif side is not None:
            tensors[f"{name}.out_rows"] = side.float()
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
