"""What an adapter of PEFT does to one weight: the only place where edgepack computes W + s·B·A.

Formulas and tests follow ``merge_and_unload`` of PEFT; DoRA is arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgepack.checkpoint.shards import Place
from edgepack.checkpoint.source_files import SourceFiles

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """ΔW = scale · B·A ``[out, in]``. A `transposed` weight is stored ``[in, out]``, as embeddings
    are. With a `magnitude` ``[out]`` (DoRA), W + ΔW is scaled so that its rows have these norms."""

    A: Place
    B: Place
    scale: float
    transposed: bool = False
    magnitude: Place | None = None

    @property
    def shape(self) -> Shape | None:
        """Shape of the weight that it is for; None if its parts do not fit one another."""
        if len(self.A.shape) != 2 or len(self.B.shape) != 2:
            return None
        shape = (self.B.shape[0], self.A.shape[1])
        if self.A.shape[0] != self.B.shape[1]:
            return None
        if self.magnitude is not None and math.prod(self.magnitude.shape) != shape[0]:
            return None
        return shape[::-1] if self.transposed else shape

    def rows_of(self, index: int, count: int) -> Pair:
        """Of part `index` of `count` with equally many rows each."""
        magnitude = None if self.magnitude is None else self.magnitude.rows(index, count)
        return replace(self, B=self.B.rows(index, count), magnitude=magnitude)

    def apply(self, W: Tensor, files: SourceFiles) -> Tensor:
        """The changed weight, float32 (float64 if W is)."""
        A, B = (part.read(files).float() for part in (self.A, self.B))
        delta = (B @ A).mul_(self.scale).to(torch.promote_types(torch.float32, W.dtype))
        made = delta.add_(W.T if self.transposed else W)
        if self.magnitude is not None:
            magnitude = self.magnitude.read(files).float().reshape(-1)
            made.mul_((magnitude / torch.linalg.norm(made, dim=1))[:, None])
        return made.T.contiguous() if self.transposed else made


@dataclass(frozen=True)
class Change:
    """All that an adapter does to a weight, in this order.

    `whole` takes its place (``modules_to_save``), `rows` take the places of some of its rows
    (``trainable_token_indices``), `pair` is added, and so is a `bias` times its scale
    (``lora_bias``).
    """

    whole: Place | None = None
    rows: Place | None = None
    indices: Sequence[int] = ()
    pair: Pair | None = None
    bias: tuple[Place, float] | None = None

    def shape(self, W: Shape) -> Shape | None:
        """Shape of the result for a weight of shape `W`; None if the change does not fit it."""
        if self.whole is not None:
            W = self.whole.shape
        fits = (
            self.pair is None or self.pair.shape == W,
            self.bias is None or self.bias[0].shape == W,
            self.rows is None
            or (
                self.rows.shape == (len(self.indices), *W[1:])
                and all(0 <= index < W[0] for index in self.indices)
            ),
        )
        return W if all(fits) else None

    def own_shape(self, W: Shape) -> Shape:
        """The shape that the change is for, to tell people."""
        if self.whole is not None:
            return self.whole.shape
        if self.pair is not None:
            return self.pair.shape or (0,)
        return W if self.bias is None else self.bias[0].shape

    def rows_of(self, index: int, count: int) -> Change:
        """Of part `index` of `count` with equally many rows, of a weight that holds several."""
        if count == 1:
            return self
        whole = None if self.whole is None else self.whole.rows(index, count)
        pair = None if self.pair is None else self.pair.rows_of(index, count)
        return replace(self, whole=whole, pair=pair)

    @property
    def working_bytes(self) -> int:
        """Bytes that `apply` needs beside W and the result."""
        whole = 0 if self.whole is None else self.whole.nbytes
        if self.pair is None:
            return whole
        return whole + 4 * math.prod(self.pair.shape or (0,)) * (1 + self.pair.transposed)

    def apply(self, W: Tensor, files: SourceFiles) -> Tensor:
        """The changed weight in W's type, computed in float32."""
        made = W if self.whole is None else self.whole.read(files)
        if self.rows is not None:
            made = made.index_copy(
                0, torch.tensor(self.indices), self.rows.read(files).to(made.dtype)
            )
        if self.pair is not None:
            made = self.pair.apply(made, files)
        if self.bias is not None:
            place, scale = self.bias
            made = made.float() + place.read(files).float() * scale
        return made.to(W.dtype)
