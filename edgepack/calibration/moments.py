"""Running second moments of the inputs of weights, and of the gradients at their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.core.linalg import damp, pack_symmetric, unpack_symmetric
from edgepack.core.weight_files import save_tensors
from edgepack.core.weights import Hessian, WeightSpec
from edgepack.errors import CalibrationError

OUT = " out"
"""Suffix of the role that names the moments of a weight's output gradients."""
HEAD = "head"
"""File of the head's Hessian, and its name there; the files of the blocks are ``0`` …"""
EMBEDDING = "token_embd"
"""File of the embeddings' Hessian, and its name there."""
OUTPUT = "output"
"""Role of the head's matrix, if it is not tied to the embeddings."""


@dataclass
class Moments:
    """Running Σ w x xᵀ in float64, separately for calibration and held-out tokens, and Σ x² as in
    llama.cpp's imatrix (calibration tokens, unweighted)."""

    output_side: bool = False
    """Whether to collect the gradients' moments as well (under the name with `OUT`)."""
    sums: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Diagonals ``[out]`` of output sides that are too large for a matrix (a vocabulary)."""
    tokens: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    met: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Inputs that a weight has had; an expert gets some of the tokens only."""

    def add(self, name: str, x: Tensor, weight: Tensor | None, held_out: bool) -> None:
        """Add inputs x ``[…, n]`` with token weights ``[…]`` (1 where None)."""
        x = x.reshape(-1, x.shape[-1])
        if not held_out and not name.endswith(OUT):
            square = x.square().sum(0, dtype=torch.float64)
            self.squares[name] = self.squares[name] + square if name in self.squares else square
        if weight is not None:
            x = x * weight.reshape(-1, 1).sqrt()
        product = (x.T @ x).double()
        key = (name, held_out)
        self.met[key] = self.met.get(key, 0) + len(x)
        self.sums[key] = self.sums[key] + product if key in self.sums else product

    def add_rows(self, name: str, weight: Tensor) -> None:
        """Add to the diagonal ``[out]`` of an output side."""
        self.rows[name] = self.rows[name] + weight if name in self.rows else weight

    def count(self, tokens: int, held_out: bool) -> None:
        """Add to the number of tokens that the sums are divided by."""
        self.tokens[held_out] += tokens

    def hessians(self) -> dict[str, Hessian]:
        """The means, by name."""
        names = {name for name, _ in self.sums}
        return {name: self._hessian(name) for name in sorted(names) if not name.endswith(OUT)}

    def _hessian(self, name: str) -> Hessian:
        train, held_out = (self._mean(name, part) for part in (False, True))
        if train is None or held_out is None:
            raise CalibrationError(
                f"{name}: there are no {'training' if train is None else 'held-out'} tokens",
                hint="give a longer text, or a smaller calibrate.sequence_length",
            )
        if name in self.rows:
            sides = [normalize(self.rows[name])] * 2
        else:
            outs = (self._mean(name + OUT, part) for part in (False, True))
            sides = [damp(H, 0.0) for H in outs if H is not None]
        return Hessian(train, held_out, self.squares[name] / self.tokens[False], *sides)

    def _mean(self, name: str, held_out: bool) -> Tensor | None:
        total = self.sums.get((name, held_out))
        return None if total is None else total / self.tokens[held_out]


def normalize(diagonal: Tensor) -> Tensor:
    """A diagonal scaled to mean 1; ones where it is all zero."""
    mean = diagonal.mean()
    return diagonal / mean if mean > 0 else torch.ones_like(diagonal)


def save_hessians(
    path: Path, hessians: Mapping[str, Hessian], about: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write Hessians as float32 upper triangles into one file, with a description."""
    tensors = {}
    for name, H in hessians.items():
        tensors[f"{name}.train"] = pack_symmetric(H.train)
        tensors[f"{name}.held_out"] = pack_symmetric(H.held_out)
        tensors[f"{name}.imatrix"] = H.imatrix.float()
        for part in ("out_train", "out_held_out"):
            side = getattr(H, part)
            if side is not None and side.dim() == 2:
                tensors[f"{name}.{part}"] = pack_symmetric(side)
            elif side is not None:
                tensors[f"{name}.out_rows"] = side.float()
    save_tensors(path, tensors, dict(about))


def load_hessian(path: Path, name: str) -> Hessian:
    """One Hessian of a file; the others are not read."""
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())

        def matrix(part: str) -> Tensor:
            return unpack_symmetric(file.get_tensor(f"{name}.{part}"))

        imatrix = file.get_tensor(f"{name}.imatrix")
        if f"{name}.out_rows" in there:
            rows = file.get_tensor(f"{name}.out_rows")
            return Hessian(matrix("train"), matrix("held_out"), imatrix, rows, rows)
        sides = (matrix(p) for p in ("out_train", "out_held_out") if f"{name}.{p}" in there)
        return Hessian(matrix("train"), matrix("held_out"), imatrix, *sides)


def trace(path: Path, name: str) -> float:
    """tr H of one Hessian of a file, from its calibration tokens."""
    with safe_open(path, framework="pt") as file:
        packed = file.get_tensor(f"{name}.train")
    n = int((2 * packed.numel() + 0.25) ** 0.5)
    rows = torch.arange(n)  # row i of the triangle has n - i entries
    return float(packed[rows * n - rows * (rows - 1) // 2].sum(dtype=torch.float64))


def weight_hessian(folder: Path, spec: WeightSpec, *, tied: bool) -> Hessian:
    """The Hessian of a weight in the folder of a one-shot calibration.

    Embeddings without a Hessian of their own (objective ``guided``) take that of a tied head, or
    else the identity: their rows are looked up, not multiplied. Matrices without calibration
    (learned positions, shortcuts) take the identity too; they stay float16.
    """
    if spec.role in LINEAR_ROLES and spec.block is not None:
        return load_hessian(folder / str(spec.block), spec.part)
    if spec.role == OUTPUT:
        return load_hessian(folder / HEAD, HEAD)
    if spec.role != EMBEDDING:
        return identity_hessian(spec.shape[1])
    head = load_hessian(folder / HEAD, HEAD) if tied else None
    if not (folder / EMBEDDING).exists():
        return head or identity_hessian(spec.shape[1])
    own = load_hessian(folder / EMBEDDING, EMBEDDING)
    return own if head is None else _both(own, head)


def identity_hessian(columns: int) -> Hessian:
    """The Hessian where nothing is known: all columns count alike."""
    eye = torch.eye(columns)
    return Hessian(eye, eye, torch.ones(columns))


def _both(embedding: Hessian, head: Hessian) -> Hessian:
    """The Hessian of a matrix that is both embedding and head: the effects of both add up."""
    if embedding.out_train is None or head.out_train is None:
        raise CalibrationError(
            "the calibration of the embeddings has no side of their outputs",
            hint="a file of the cache is damaged: remove its folder and run again",
        )
    share = embedding.train.trace() / (embedding.train + head.train).trace()
    rows = share * embedding.out_train + (1 - share) * head.out_train
    train, held_out = embedding.train + head.train, embedding.held_out + head.held_out
    return Hessian(train, held_out, head.imatrix, rows, rows)
