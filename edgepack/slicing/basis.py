"""The directions of the residual stream that are kept, and the basis they are expressed in."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.core.hadamard import random_hadamard
from edgepack.errors import CalibrationError
from edgepack.recipe.sections import Orientation


def principal_directions(C: Tensor) -> Tensor:
    """The eigenvectors of C = Σ x xᵀ ``[D, D]`` as columns, the largest eigenvalue first, float64.

    SliceGPT's Q (eq. 8 f.). In float64, because float32 costs perplexity (its table 4). The largest
    entry of every column is made positive, so that the same C gives the same Q.
    """
    if not torch.isfinite(C).all():
        raise CalibrationError(
            "the hidden states to slice by are not finite (NaN or infinite)",
            hint="a weight is not finite, or the model overflows on the calibration text",
        )
    vectors = torch.linalg.eigh(C.double()).eigenvectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = vectors * largest.sign()
    return signed


def orient(Q: Tensor, width: int, orientation: Orientation, seed: int) -> Tensor:
    """The first `width` columns of Q ``[D, D]``, rotated within the space that they span, ``[D,
    width]``. ``pca`` leaves them as they are; ``random`` and ``hadamard`` spread outliers over all
    columns. The model is the same as long as nothing is rounded."""
    kept = Q[:, :width]
    if orientation == "random":
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(width, width, generator=generator, dtype=torch.float64)
        R, upper = torch.linalg.qr(normal)
        kept = kept @ (R * upper.diagonal().sign())
    return kept @ random_hadamard(width, seed) if orientation == "hadamard" else kept
