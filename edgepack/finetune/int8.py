"""Exact products of 8-bit integers, and the codes and scales that stand for float32 matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.finetune.int4.lsq import SMALLEST
from edgepack.finetune.int4.sampling import round_stochastically

LARGEST = 127
"""Codes go from −127 to 127."""
PART = 2**18
"""Numbers that are rounded at a time, so that they stay in the processor's cache."""
CUDA_ROWS, CUDA_MULTIPLE = 32, 8
"""On CUDA `torch._int_mm` takes more than 16 rows, and columns in multiples of 8."""


def row_codes(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """x ``[n, m]`` as int8 codes ``[n, m]`` and scales float32 ``[n, 1]``; rounded to the nearest,
    or at random so that the mean is x. Rows that are not finite get a scale that is not."""
    x = x.float()
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    scale = (largest / LARGEST).clamp_min(SMALLEST)
    integers = torch.empty_like(x, dtype=torch.int8)
    rows = max(1, PART // x.shape[1])
    for i in range(0, len(x), rows):
        ratio = (x[i : i + rows] / scale[i : i + rows]).clamp_(-LARGEST, LARGEST)
        if generator is not None:
            ratio = round_stochastically(ratio, generator)
        integers[i : i + rows] = ratio.round_()
    return integers, scale


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, exact, int32 ``[n, out]``, for int8 a ``[n, m]`` and b ``[m, out]`` with m < 133,000."""
    if a.device.type != "cuda":
        return torch._int_mm(a, b)
    return torch._int_mm(*pad_for_cuda(a, b))[: len(a), : b.shape[1]]


def pad_for_cuda(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with zeros added, until their shapes are among those that CUDA multiplies."""
    (n, m), out = a.shape, b.shape[1]
    more_m, more_out = -m % CUDA_MULTIPLE, -out % CUDA_MULTIPLE
    more_n = max(CUDA_ROWS - n, -n % CUDA_MULTIPLE)
    pad = torch.nn.functional.pad
    return pad(a, (0, more_m, 0, more_n)), pad(b, (0, more_out, 0, more_m))


def is_exact(device: torch.device) -> bool:
    """Whether a small product is exact. Its sums of largest codes overflow 16 bits: torch before
    2.6 multiplies wrongly without VNNI (pytorch issue 136746)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-LARGEST, LARGEST + 1, (40, 72), generator=generator)
    a[0], a[1] = LARGEST, -LARGEST
    b = a[:24].T.contiguous()
    try:
        product = integer_product(a.to(device, torch.int8), b.to(device, torch.int8))
    except RuntimeError:
        return False
    return torch.equal(product.cpu().long(), a @ b)
