"""How a frozen matrix is multiplied in training: float32, bfloat16, INT8, or simulated INT4.

W ``[out, in]`` does not learn, so there are two products: x Wᵀ forward, g W backward. `choose`
gives the arithmetic of a name if this machine has instructions for it. Results are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from edgepack.core.hardware import multiplies_bfloat16, multiplies_int8
from edgepack.errors import EdgepackError, RecipeError
from edgepack.finetune.int4 import sampling
from edgepack.finetune.int4.hadamard import block_matrix, block_sizes, rotate
from edgepack.finetune.int4.lsq import codes, initial_step

Name = Literal["float32", "bfloat16", "int8", "int4"]
LARGEST_INT8 = 127
"""Codes of INT8 go from −127 to 127."""
SMALLEST = 1e-30
"""Scales are at least this, so that a row of zeros does not divide by zero."""
INT4_BITS, INT4_BLOCK = 4, 32
"""Bits of a code, and the widest block of H, the usual one in arXiv 2306.11987, section 3.3."""
CUDA_ROWS, CUDA_MULTIPLE = 32, 8
"""On CUDA `torch._int_mm` takes more than 16 rows, and columns in multiples of 8."""


class Arithmetic(Protocol):
    """The two products of a frozen W ``[out, in]``, and what a user should know of them."""

    @property
    def name(self) -> str:
        """One of `Name`: what is computed, which after a fallback is not what was asked for."""
        ...

    @property
    def note(self) -> str | None:
        """One line for the report, or None."""
        ...

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ ``[n, out]``, float32, for x ``[n, in]``."""
        ...

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W ``[n, in]``, float32, for g ``[n, out]``."""
        ...

    def start_step(self, step: int) -> None:
        """Random numbers of the following calls follow from the seed and this number, so that a
        resumed run draws what the whole run would have drawn."""
        ...


def choose(
    name: str, *, fallback: bool = False, seed: int = 0, device: torch.device | str = "cpu"
) -> Arithmetic:
    """The arithmetic of that name on that device.

    Raises `EdgepackError` if the device has no instructions for it (then it would be slower than
    float32). With `fallback` it gives float32 instead, and its `note` says why.
    """
    if name not in get_args(Name):
        raise RecipeError(f"no arithmetic {name}", hint=f"use {', '.join(get_args(Name))}")
    device = torch.device(device)
    if name == "int4":
        return Int4(seed)
    if name == "int8" and not _multiplies_int8(device):
        missing = f"{device.type} has no fast products of 8-bit integers here"
    elif name == "bfloat16" and not _multiplies_bfloat16(device):
        missing = f"{device.type} has no products of bfloat16 numbers here"
    else:
        kinds: dict[str, Arithmetic]
        kinds = {"float32": Float32(), "bfloat16": Bfloat16(), "int8": Int8(seed)}
        return kinds[name]
    if not fallback:
        raise EdgepackError(f"{name}: {missing}", hint="use float32, or allow it as a fallback")
    return Float32(note=f"float32 instead of {name}: {missing}")


@dataclass(frozen=True)
class Float32:
    """Products as they are."""

    name: str = "float32"
    note: str | None = None

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        return x.float() @ W.float().T

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        return g.float() @ W.float()

    def start_step(self, step: int) -> None:
        """Nothing is random."""


@dataclass(frozen=True)
class Bfloat16:
    """Operands are rounded to bfloat16; sums are float32, and the result is rounded once more."""

    name: str = "bfloat16"
    note: str | None = None

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        return (x.bfloat16() @ W.bfloat16().T).float()

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        return (g.bfloat16() @ W.bfloat16()).float()

    def start_step(self, step: int) -> None:
        """Nothing is random."""


@dataclass
class _Random:
    """Generators numbered by seed, step and call."""

    seed: int
    step: int = 0
    calls: int = 0

    def start_step(self, step: int) -> None:
        self.step, self.calls = step, 0

    def next(self, device: torch.device) -> torch.Generator:
        self.calls += 1
        return sampling.make_generator(device, self.seed, self.step, self.calls)


@dataclass
class Int8:
    """Integer products: x and g get a scale per row, W gets one per row.

    x Wᵀ ≈ s_x s_W int(x) int(W)ᵀ. Backward, the scales of W stand inside the sum, so they go into g
    first: g W ≈ s · int(g∘s_W) · int(W). It is the gradient of the W that the forward product
    used. `stochastic` rounds g at random, which makes its mean exact (as bit splitting does, in one
    8-bit product instead of two 4-bit ones).
    """

    seed: int = 0
    stochastic: bool = True
    name: str = "int8"
    note: str | None = None
    random: _Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = _Random(self.seed)

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        x_codes, x_scale = row_codes(x)
        W_codes, W_scale = row_codes(W)
        return integer_product(x_codes, W_codes.T).float().mul_(x_scale).mul_(W_scale.T)

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        W_codes, W_scale = row_codes(W)
        generator = self.random.next(g.device) if self.stochastic else None
        g_codes, g_scale = row_codes(g * W_scale.T, generator)
        return integer_product(g_codes, W_codes).float().mul_(g_scale)

    def start_step(self, step: int) -> None:
        """Sets the random numbers of the rounding of g."""
        self.random.start_step(step)


@dataclass
class Int4:
    """What a device with 4-bit products would compute (arXiv 2306.11987), in float32.

    Forward: x and W are rounded in a Hadamard domain. W is frozen and nothing learns a step, so
    each row gets the step that learning would start from. Backward: g is split into 4-bit halves
    and about as many of their rows are kept as g has (leverage scores), which leaves the mean as it
    is. Inputs that were clamped pass their gradient, since g W does not know them.
    """

    seed: int = 0
    name: str = "int4"
    note: str | None = "4-bit products are simulated in float32, slower than float32 itself"
    random: _Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = _Random(self.seed)

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        H = _block(W)
        x_codes, x_step = _rotated_codes(x, H)
        W_codes, W_step = _rotated_codes(W, H)
        return (x_codes @ W_codes.T).mul_(x_step).mul_(W_step.T)

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        H = _block(W)
        W_codes, W_step = _rotated_codes(W, H)
        generator = self.random.next(g.device)
        halves = sampling.split_bits(g.float() * W_step.T, generator)
        p = sampling.activation_probabilities(halves)
        return rotate(sampling.activation_gradient(halves, W_codes, p, generator), H.T)

    def start_step(self, step: int) -> None:
        """Sets the random numbers of rounding and sampling."""
        self.random.start_step(step)


def row_codes(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """x ``[n, m]`` as int8 codes ``[n, m]`` and scales float32 ``[n, 1]``; rounded to the nearest,
    or at random so that the mean is x. Rows that are not finite get a scale that is not."""
    x = x.float()
    scale = (x.abs().amax(1, keepdim=True) / LARGEST_INT8).clamp_min(SMALLEST)
    ratio = (x / scale).clamp_(-LARGEST_INT8, LARGEST_INT8)
    if generator is not None:
        ratio = sampling.round_stochastically(ratio, generator)
    return ratio.round_().to(torch.int8), scale


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


def _block(W: Tensor) -> Tensor:
    """The Hadamard matrix for the columns of W."""
    return block_matrix(max(b for b in block_sizes(W.shape[1]) if b <= INT4_BLOCK))


def _rotated_codes(x: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the rows of xH as float32 ``[n, m]``, and steps ``[n, 1]``."""
    x = rotate(x.float(), H)
    step = initial_step(x, INT4_BITS, by_row=True)
    return codes(x, step, INT4_BITS), step


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and multiplies_bfloat16()


def _multiplies_int8(device: torch.device) -> bool:
    """Whether the device has the instructions and torch multiplies exactly with them."""
    if device.type == "cuda":
        usable = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (7, 5)
    else:
        usable = device.type == "cpu" and multiplies_int8()
    return usable and is_exact(device)


def is_exact(device: torch.device) -> bool:
    """Whether a small product is exact. Its sums of largest codes overflow 16 bits: torch before
    2.6 multiplies wrongly without VNNI (pytorch issue 136746)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-LARGEST_INT8, LARGEST_INT8 + 1, (40, 72), generator=generator)
    a[0], a[1] = LARGEST_INT8, -LARGEST_INT8
    b = a[:24].T.contiguous()
    try:
        product = integer_product(a.to(device, torch.int8), b.to(device, torch.int8))
    except RuntimeError:
        return False
    return torch.equal(product.cpu().long(), a @ b)
