"""How a frozen matrix is multiplied in training: float32, bfloat16, INT8, or simulated INT4.

W ``[out, in]`` does not learn, so there are two products: x Wᵀ forward, g W backward. `choose`
gives the arithmetic of a name if this machine has instructions for it. Results are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from edgepack.core.accelerator import multiplies_bfloat16
from edgepack.core.hardware import multiplies_int8
from edgepack.errors import EdgepackError, RecipeError
from edgepack.finetune.int4 import sampling
from edgepack.finetune.int4.hadamard import block_sizes, rotate
from edgepack.finetune.int4.lsq import SMALLEST, codes
from edgepack.finetune.int8 import integer_product, is_exact, row_codes

Name = Literal["float32", "bfloat16", "int8", "int4"]
OUTLIERS = 64
"""One of so many columns of x, those with the largest numbers, is multiplied in float32. Its KL on
SmolLM2-135M is 0.008, without 0.036 (benchmarks/int4_operators.py)."""
INT4_BITS, INT4_STEP = 4, 0.4
"""Bits of a code, and a step as a share of the row's root mean square: near the least error of a
normal distribution in 15 levels (0.36), and measured better on SmolLM2-135M than what LSQ starts
with (0.6), since nothing learns a step here."""


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
    elif name == "bfloat16" and not multiplies_bfloat16(device):
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
    """Generators numbered by seed, step and call; of the CPU, so that all devices draw alike."""

    seed: int
    step: int = 0
    calls: int = 0

    def start_step(self, step: int) -> None:
        self.step, self.calls = step, 0

    def next(self) -> torch.Generator:
        self.calls += 1
        return sampling.make_generator("cpu", self.seed, self.step, self.calls)


@dataclass
class Int8:
    """Integer products: x and g get a scale per row, W gets one per row.

    x Wᵀ ≈ s_x s_W int(x) int(W)ᵀ. A language model's x has a few columns whose numbers are so large
    that a row's scale would drown the others; these are multiplied in float32 (LLM.int8(), Dettmers
    et al., arXiv 2208.07339). Backward, the scales of W stand inside the sum, so they go into g
    first: g W ≈ s · int(g∘s_W) · int(W). `stochastic` rounds g at random, which makes its mean
    exact (as bit splitting does, in one 8-bit product instead of two 4-bit ones).
    """

    seed: int = 0
    stochastic: bool = True
    name: str = "int8"
    note: str | None = None
    random: _Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.random = _Random(self.seed)

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        x, W = x.float(), W.float()
        outliers = x.abs().amax(0).topk(x.shape[1] // OUTLIERS).indices
        x_codes, x_scale = row_codes(x.index_fill(1, outliers, 0))
        W_codes, W_scale = row_codes(W)
        y = integer_product(x_codes, W_codes.T).float().mul_(x_scale).mul_(W_scale.T)
        return y.addmm_(x[:, outliers], W[:, outliers].T)

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        W_codes, W_scale = row_codes(W)
        generator = self.random.next() if self.stochastic else None
        g_codes, g_scale = row_codes(g * W_scale.T, generator)
        return integer_product(g_codes, W_codes).float().mul_(g_scale)

    def start_step(self, step: int) -> None:
        """Sets the random numbers of the rounding of g."""
        self.random.start_step(step)


@dataclass
class Int4:
    """What a device with 4-bit products would compute (arXiv 2306.11987), in float32.

    Forward: x and W are rounded in a Hadamard domain, with the widest block that there is. Nothing
    learns a step, so each row gets a good one for normal numbers. Backward: g is split into 4-bit
    halves, which leaves its mean as it is. Inputs that were clamped pass their gradient, since g W
    does not know them.

    `sampled` keeps about half of the rows of the halves (leverage scores), as the paper does; else
    all are kept, as in its published code. Sampling is for gradients that are near zero for most
    tokens, as in a classifier. Where all tokens are alike, it has an error of about 0.6 in each
    product, and these multiply from block to block: nothing is left of the gradient of a pretrained
    language model of 30 blocks (benchmarks/int4_operators.py).
    """

    seed: int = 0
    sampled: bool = True
    name: str = "int4"
    random: _Random = field(init=False, repr=False, compare=False)

    @property
    def note(self) -> str:
        """That it is simulated, and what it does to large models."""
        return "4-bit products are simulated in float32 and slower than it; for shallow models only"

    def __post_init__(self) -> None:
        self.random = _Random(self.seed)

    def product(self, x: Tensor, W: Tensor) -> Tensor:
        """x Wᵀ."""
        x_codes, x_step = rotated_codes(x)
        W_codes, W_step = rotated_codes(W)
        return (x_codes @ W_codes.T).mul_(x_step).mul_(W_step.T)

    def input_gradient(self, g: Tensor, W: Tensor) -> Tensor:
        """g W."""
        W_codes, W_step = rotated_codes(W)
        generator = self.random.next()
        halves = sampling.split_bits(g.float() * W_step.T, generator, by_row=True)
        p = sampling.activation_probabilities(halves) if self.sampled else None
        gradient = sampling.activation_gradient(halves, W_codes, p, generator)
        return rotate(gradient, widest_block(W.shape[1]))

    def start_step(self, step: int) -> None:
        """Sets the random numbers of rounding and sampling."""
        self.random.start_step(step)


def widest_block(width: int) -> int:
    """Columns of a block of the Hadamard matrix for INT4."""
    return block_sizes(width)[-1]


def rotated_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the rows of xH as float32 ``[n, m]``, and their steps ``[n, 1]``."""
    x = rotate(x.float(), widest_block(x.shape[1]))
    step = (INT4_STEP * x.square().mean(1, keepdim=True).sqrt()).clamp_min(SMALLEST)
    return codes(x, step, INT4_BITS), step


def _multiplies_int8(device: torch.device) -> bool:
    """Whether the device has the instructions and torch multiplies exactly with them."""
    if device.type == "cuda":
        usable = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (7, 5)
    else:
        usable = device.type == "cpu" and multiplies_int8()
    return usable and is_exact(device)
