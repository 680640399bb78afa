"""Running second moments of the inputs of weights, and of the gradients at their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.gram import PANEL, Gram
from edgepack.core.accelerator import precise, wide
from edgepack.core.linalg import unpack_symmetric
from edgepack.core.travel import Part
from edgepack.core.weight_files import Streamed, stream_tensors
from edgepack.core.weights import Hessian, WeightSpec
from edgepack.errors import CalibrationError

OUT = " out"
"""Suffix of the role that names the moments of a weight's output gradients."""
HEAD = "head"
"""File of the head's Hessian, and its name there; those of block 7's weights are in ``7/``."""
EMBEDDING = "token_embd"
"""File of the embeddings' Hessian, and its name there."""
OUTPUT = "output"
"""Role of the head's matrix, if it is not tied to the embeddings."""
SIDES = {
    "train": ("", False),
    "held_out": ("", True),
    "out_train": (OUT, False),
    "out_held_out": (OUT, True),
}
"""Field of a `Hessian` → the suffix of the name of its moments, and whether they are held out."""


@dataclass
class Moments:
    """Running Σ w x xᵀ in float64, separately for calibration and held-out tokens, and Σ x² as in
    llama.cpp's imatrix (calibration tokens, unweighted)."""

    sums: dict[tuple[str, bool], Gram] = field(default_factory=dict)
    """Those of a weight's output gradients are under its name with `OUT`."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Diagonals ``[out]`` of output sides that are too large for a matrix (a vocabulary)."""
    tokens: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    met: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Inputs that a weight has had; an expert gets some of the tokens only."""

    def add(self, name: str, x: Tensor, weight: Tensor | None, held_out: bool) -> None:
        """Add inputs x ``[…, n]`` with token weights ``[…]`` (1 where None)."""
        for part in self.adding(name, x, weight, held_out):
            part()

    def adding(
        self, name: str, x: Tensor, weight: Tensor | None, held_out: bool
    ) -> list[Callable[[], None]]:
        """What `add` does, in parts that may be done side by side."""
        x, key = x.reshape(-1, x.shape[-1]), (name, held_out)
        if key not in self.sums:
            self.sums[key] = Gram.zero(x.shape[-1], x.device)
        self.met[key] = self.met.get(key, 0) + len(x)
        gram, weight = self.sums[key], None if weight is None else weight.reshape(-1)
        parts: list[Callable[[], None]]
        parts = [partial(gram.add, k, x, weight) for k in range(len(gram.panels))]
        if held_out or name.endswith(OUT):
            return parts
        if name not in self.squares:
            self.squares[name] = torch.zeros(
                x.shape[-1], dtype=torch.float64, device=precise(x.device)
            )
        columns = zip(
            torch.split(self.squares[name], PANEL), torch.split(x, PANEL, dim=1), strict=True
        )
        return [*parts, *(partial(_add_squares, total, part) for total, part in columns)]

    def add_rows(self, name: str, weight: Tensor) -> None:
        """Add to the diagonal ``[out]`` of an output side."""
        self.rows[name] = self.rows[name] + weight if name in self.rows else weight

    def count(self, tokens: int, held_out: bool) -> None:
        """Add to the number of tokens that the sums are divided by."""
        self.tokens[held_out] += tokens

    def merge(self, other: Moments) -> None:
        """Add those of other tokens, in place. `other` is not to be used any more."""
        for key, gram in other.sums.items():
            if key in self.sums:
                self.sums[key].merge(gram)
            else:
                self.sums[key] = gram
        for name, square in other.squares.items():
            self.squares[name] = self.squares[name] + square if name in self.squares else square
        for name, weight in other.rows.items():
            self.add_rows(name, weight)
        for held_out, count in other.tokens.items():
            self.tokens[held_out] += count
        for key, count in other.met.items():
            self.met[key] = self.met.get(key, 0) + count

    @property
    def names(self) -> list[str]:
        """The weights that there are sums of."""
        return sorted({name for name, _ in self.sums if not name.endswith(OUT)})

    def hessians(self) -> dict[str, Hessian]:
        """The means, by name."""
        return {name: self._hessian(name) for name in self.names}

    def _hessian(self, name: str) -> Hessian:
        sides = {}
        for side, gram, divisors in self._sides(name):
            sides[side] = gram.dense()
            for divisor in divisors:
                sides[side] /= divisor
        rows = {}
        if name in self.rows:
            rows = dict.fromkeys(("out_train", "out_held_out"), normalize(self.rows[name].cpu()))
        return Hessian(imatrix=self.imatrix(name), **sides, **rows)

    def imatrix(self, name: str) -> Tensor:
        """The mean of x² over the calibration tokens ``[in]``."""
        return self.squares[name].cpu() / self.tokens[False]

    def save(self, path: Path, name: str) -> None:
        """Write the Hessian of a weight as float32 upper triangles; no matrix is copied."""
        tensors = {
            f"{name}.{side}": Streamed(
                (gram.n * (gram.n + 1) // 2,), torch.float32, gram.packed(*divisors)
            )
            for side, gram, divisors in self._sides(name)
        }
        vectors = {"imatrix": self.imatrix(name)}
        if name in self.rows:
            vectors["out_rows"] = normalize(self.rows[name].cpu())
        for part, values in vectors.items():
            shape = tuple(values.shape)
            tensors[f"{name}.{part}"] = Streamed(shape, torch.float32, [values.float().cpu()])
        stream_tensors(path, tensors, {"met": self.met.get((name, False), 0)})

    def _sides(self, name: str) -> Iterator[tuple[str, Gram, tuple[float, ...]]]:
        """The sums of a weight, and what they are divided by; the mean diagonal of an output side
        is 1 then."""
        for side, (suffix, held_out) in SIDES.items():
            gram, count = self.sums.get((name + suffix, held_out)), self.tokens[held_out]
            if gram is None and not suffix:
                raise CalibrationError(
                    f"{name}: there are no {'held-out' if held_out else 'training'} tokens",
                    hint="give a longer text, or a smaller calibrate.sequence_length",
                )
            if gram is None:
                continue
            mean = float((gram.diagonal() / count).mean())
            if not math.isfinite(mean):
                raise CalibrationError(
                    f"{name}: the Hessian is not finite",
                    hint="the model overflows on the calibration text",
                )
            if not suffix:
                yield side, gram, (count,)
            elif mean > 0:
                yield side, gram, (count, mean)
            else:
                yield side, Gram.identity(gram.n), ()


def _add_squares(total: Tensor, x: Tensor) -> None:
    """Add Σ x² over the tokens of x ``[tokens, n]`` to `total` ``[n]``."""
    total += wide(x).square_().sum(0)


def normalize(diagonal: Tensor) -> Tensor:
    """A diagonal scaled to mean 1; ones where it is all zero."""
    mean = diagonal.mean()
    return diagonal / mean if mean > 0 else torch.ones_like(diagonal)


def file_of(path: Path, name: str) -> Path:
    """The file of a weight's Hessian: `path`, or in the folder of a block that of the weight."""
    return path / name if path.is_dir() else path


class HessianFile(Hessian):
    """A Hessian of a file. What calibration tokens gave is read once; what held-out tokens gave is
    read whenever it is asked for, because it is needed only to judge a result, and takes as much
    memory as all that makes one."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = file_of(path, name), name
        with safe_open(self.path, framework="pt") as file:
            self.parts = frozenset(file.keys())
        _ = self.train, self.imatrix, self.out_train  # a file that lacks one is known to be damaged

    def _matrix(self, part: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return unpack_symmetric(file.get_tensor(f"{self.name}.{part}"))

    def _side(self, part: str) -> Tensor | None:
        if self._rows is not None:
            return self._rows
        return self._matrix(part) if f"{self.name}.{part}" in self.parts else None

    @cached_property
    def _rows(self) -> Tensor | None:
        return self._vector("out_rows") if f"{self.name}.out_rows" in self.parts else None

    def _vector(self, part: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            found: Tensor = file.get_tensor(f"{self.name}.{part}")
            return found

    @cached_property
    def train(self) -> Tensor:  # noqa: D102
        return self._matrix("train")

    @cached_property
    def imatrix(self) -> Tensor:  # noqa: D102
        return self._vector("imatrix")

    @cached_property
    def out_train(self) -> Tensor | None:  # noqa: D102
        return self._side("out_train")

    @property
    def held_out(self) -> Tensor:  # noqa: D102
        return self._matrix("held_out")

    @property
    def out_held_out(self) -> Tensor | None:  # noqa: D102
        return self._side("out_held_out")


def load_hessian(path: Path, name: str) -> Hessian:
    """The Hessian of a weight in a block's folder, or that of the head or the embeddings."""
    return HessianFile(path, name)


def trace(path: Path, name: str) -> float:
    """tr H of one Hessian, from its calibration tokens."""
    with safe_open(file_of(path, name), framework="pt") as file:
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


def hessian_files(folder: Path, spec: WeightSpec, *, tied: bool) -> list[Part]:
    """What `weight_hessian` reads."""
    if spec.role in LINEAR_ROLES and spec.block is not None:
        return [Part(file_of(folder / str(spec.block), spec.part))]
    head, embedding = Part(folder / HEAD), Part(folder / EMBEDDING)
    if spec.role == OUTPUT:
        return [head]
    if spec.role != EMBEDDING:
        return []
    return [*([head] if tied else []), *([embedding] if embedding.path.exists() else [])]


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
