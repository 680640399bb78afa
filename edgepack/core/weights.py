"""The values that pass between stages: descriptions of weights, and quantized weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.linalg import matmul64, slabs
from edgepack.core.parts import part_name

_ROWS = 8192  # rows at once in float64, so that no second copy of an embedding is in memory
AT_ONCE = 1 << 24
"""Elements that are computed at once where rows are independent: what a format needs beside its
codes is several times their size."""


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a matrix in slices of at most `AT_ONCE` elements."""
    return slabs(shape[0], max(1, AT_ONCE // max(1, shape[1])))


FLOATS = frozenset({"ffn_gate_inp"})
"""Roles of matrices that stay float32, as llama.cpp's own tools keep them: routers of experts."""


@dataclass(frozen=True)
class WeightSpec:
    """Description of a weight, known before any of its bytes are read.

    `name` is the Hugging Face name, `dtype` the storage type at the source (``BF16``, ``Q4_1``),
    `role` the weight's part in the architecture (``attn_q``, ``ffn_down``, ``token_embd`` …),
    `block` the transformer block it belongs to, None outside the blocks, `expert` the index of the
    expert whose it is, None for what the whole block has.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    block: int | None
    expert: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """Its name in its block: the role, with an expert's index (``ffn_up_exps.3``)."""
        return part_name(self.role, self.expert)

    @property
    def stack(self) -> tuple[int | None, str] | None:
        """What all experts' weights of its kind have in common: files store them as one tensor,
        with one format and one rank. None for a weight of its own."""
        return None if self.expert is None else (self.block, self.role)

    @property
    def is_matrix(self) -> bool:
        """Whether it has a format; norms, biases, kernels of convolutions and what chooses experts
        stay float32."""
        return len(self.shape) == 2 and self.role not in FLOATS


Grid = Mapping[str, Tensor]
"""The stored fields that give codes their values (``d``, ``m``, ``scales`` …), each
``[out, blocks, …]``. Each format defines its own fields and their dtypes."""


class Codec(Protocol):
    """The methods that a tensor needs of its format (`formats.base.Format`)."""

    block_size: int
    largest: float

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor in a GGUF file."""
        ...

    def encode(self, W: Tensor, grid: Grid) -> Tensor:
        """The codes nearest to W on a grid."""
        ...

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Codes as float32."""
        ...


@dataclass(frozen=True)
class WeightFormat:
    """How one matrix is stored: the formats of Q, L and R, and the rank (0: no L and R). If it is
    `exact`, the weight lies on a grid of Q's format, and its codes are taken as they are."""

    Q: str
    rank: int = 0
    L: str | None = None
    R: str | None = None
    exact: bool = field(default=False, kw_only=True)

    @property
    def factors(self) -> str:
        """The format asked for L and R; where its blocks did not fit, they have ``f16`` instead."""
        return next((name for name in (self.L, self.R) if name not in (None, "f16")), None) or "f16"


@dataclass(frozen=True)
class QuantizedTensor:
    """Q: integer codes on a named grid, not the bytes of any runtime.

    `codes` is uint8 ``[out, in]``; for unquantized formats (``f16``) `codes` holds
    the values themselves. `grid` holds the format's fields per block.
    """

    format: str
    codes: Tensor
    grid: Grid

    @property
    def plugin(self) -> Codec:
        """The format of the codes."""
        found: Codec = plugins.find("formats", self.format)
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in a GGUF file, scales included."""
        return self.plugin.nbytes(self.shape)

    def dequantize(self) -> Tensor:
        """Q as float32 ``[out, in]``, bit for bit what the runtime makes of the packed bytes.
        Codes that are float32 (``f32``, which is no format to round to) are the values."""
        if self.codes.dtype == torch.float32:
            return self.codes
        if self.codes.numel() <= AT_ONCE:
            return self.plugin.decode(self.codes, self.grid)
        out = torch.empty(self.shape, device=self.codes.device)
        for rows in row_slices(self.shape):
            part = self.permute_rows(rows)
            out[rows] = self.plugin.decode(part.codes, part.grid)
        return out

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same tensor on a device."""
        grid = {field: values.to(device) for field, values in self.grid.items()}
        return QuantizedTensor(self.format, self.codes.to(device), grid)

    def permute_rows(self, order: Tensor | slice) -> QuantizedTensor:
        """The same tensor with row i taken from row ``order[i]``; of a slice, those rows alone,
        which are not copied."""
        grid = {field: values[order] for field, values in self.grid.items()}
        return QuantizedTensor(self.format, self.codes[order], grid)


@dataclass(frozen=True)
class FactoredWeight:
    """W ≈ Q + L·R, with L ``[out, rank]`` and R ``[rank, in]``, both None at rank 0.

    `L` and `R` are quantized tensors too, in the factors' own formats. As an adapter on the base
    Q they are ``lora_B = L`` and ``lora_A = R`` with scale 1.
    """

    Q: QuantizedTensor
    L: QuantizedTensor | None = None
    R: QuantizedTensor | None = None

    @property
    def rank(self) -> int:
        """Columns of L; 0 without factors."""
        return 0 if self.L is None else self.L.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of Q, L and R together."""
        return sum(part.nbytes for part in (self.Q, self.L, self.R) if part is not None)

    def dense(self) -> Tensor:
        """Q + L·R as float32 ``[out, in]``."""
        if self.L is None or self.R is None:
            return self.Q.dequantize()
        return self.Q.dequantize().addmm_(self.L.dequantize(), self.R.dequantize())

    def to(self, device: torch.device) -> FactoredWeight:
        """The same weight on a device."""
        L, R = (part and part.to(device) for part in (self.L, self.R))
        return FactoredWeight(self.Q.to(device), L, R)

    def permute_rows(self, order: Tensor | slice) -> FactoredWeight:
        """The same weight with the rows of Q and L reordered, or a slice of them; R has no output
        rows."""
        return FactoredWeight(
            self.Q.permute_rows(order),
            None if self.L is None else self.L.permute_rows(order),
            self.R,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The weight as named tensors, for one safetensors file."""
        out: dict[str, Tensor] = {}
        for part, value in (("Q", self.Q), ("L", self.L), ("R", self.R)):
            if value is not None:
                out[f"{part}.codes"] = value.codes.contiguous()
                out |= {f"{part}.grid.{k}": v.contiguous() for k, v in value.grid.items()}
        return out

    def formats(self) -> dict[str, str]:
        """The format of each part, for the file's header."""
        parts = {"Q": self.Q, "L": self.L, "R": self.R}
        return {part: value.format for part, value in parts.items() if value is not None}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], formats: Mapping[str, str]) -> FactoredWeight:
        """Inverse of `tensors` and `formats`."""
        parts: dict[str, Any] = {}
        for part, name in formats.items():
            prefix = f"{part}.grid."
            grid = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            parts[part] = QuantizedTensor(name, tensors[f"{part}.codes"], grid)
        return FactoredWeight(**parts)


@dataclass(frozen=True)
class Hessian:
    """H of one weight from calibration tokens and from tokens held out, both ``[in, in]``, and
    llama.cpp's imatrix for it, the mean of x² over the calibration tokens ``[in]``.

    The output side H_out has mean diagonal 1. It is ``[out, out]``, or a diagonal ``[out]``, or
    None where all outputs count alike. An error E then adds ½·tr(H_out E H Eᵀ)/out to the model's
    KL, in nats a token.
    """

    train: Tensor
    held_out: Tensor
    imatrix: Tensor
    out_train: Tensor | None = None
    out_held_out: Tensor | None = None

    def to(self, device: torch.device) -> Hessian:
        """The same on a device."""
        return self if device.type == "cpu" else _HessianOn(self, device)


class _HessianOn(Hessian):
    """A Hessian on a device. What held-out tokens gave is moved whenever it is asked for, as it may
    be read only then."""

    def __init__(self, H: Hessian, device: torch.device) -> None:
        self.H, self.device = H, device

    def _moved(self, side: Tensor | None) -> Tensor | None:
        return None if side is None else side.to(self.device)

    @cached_property
    def train(self) -> Tensor:
        return self.H.train.to(self.device)

    @cached_property
    def imatrix(self) -> Tensor:
        return self.H.imatrix.to(self.device)

    @cached_property
    def out_train(self) -> Tensor | None:
        return self._moved(self.H.out_train)

    @property
    def held_out(self) -> Tensor:
        return self.H.held_out.to(self.device)

    @property
    def out_held_out(self) -> Tensor | None:
        return self._moved(self.H.out_held_out)


def relative_error(W: Tensor, W_hat: Tensor, H: Tensor, H_out: Tensor | None = None) -> float:
    """tr(H_out E H Eᵀ) / tr(H_out W H Wᵀ) for E = W − Ŵ: the layer error ‖EH^½‖²/‖WH^½‖² (CALDERA,
    eq. 1) in the metric of H ``[in, in]`` and H_out (see `quadratic_cost`)."""
    return quadratic_cost(W - W_hat, H, H_out) / max(quadratic_cost(W, H, H_out), 1e-300)


def quadratic_cost(E: Tensor, H: Tensor, H_out: Tensor | None = None) -> float:
    """tr(H_out E H Eᵀ) in float64; H_out ``[out, out]``, its diagonal ``[out]``, or None for the
    identity. A negative result of rounding in H is returned as 0."""
    total = torch.zeros((), dtype=torch.float64, device=E.device)
    if H_out is not None and H_out.dim() == 2:
        E = E.double()
        left = matmul64(E.T, H_out)  # H_out is symmetric
        for columns in slabs(len(H)):
            total += torch.einsum("ji,ij->", left[columns], E @ H[:, columns].double())
        return max(float(total), 0.0)
    rows = E.new_ones(len(E)) if H_out is None else H_out
    for part, weight in zip(torch.split(E, _ROWS), torch.split(rows, _ROWS), strict=True):
        e = part.double()
        total += torch.einsum("i,ij,ij->", weight.double(), matmul64(e, H), e)
    return max(float(total), 0.0)
