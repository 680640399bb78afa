"""The packed model in training: exact gradients at L, R and at adapters; Q is never a float copy.

A block's input is all that is kept of the forward pass. Its inside is computed again when the
gradient arrives (Chen et al., arXiv 1604.06174), and inside that, a product keeps neither W nor
h = A·x: W is decoded again, h multiplied again (MeSP, arXiv 2602.13069).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import Checkpoint, Dimensions
from edgepack.core.accelerator import CPU
from edgepack.errors import EdgepackError
from edgepack.finetune.arithmetic import Arithmetic
from edgepack.finetune.reader import Reader, reader_for
from edgepack.model.block import Block, Linear, norm
from edgepack.model.decoder import Decoder, finish


@dataclass(frozen=True)
class Pair:
    """One term B·A·x·scale beside W·x: A ``[rank, in]``, B ``[out, rank]``. With `dropout`, that
    share of the entries of x is left out of it (`seed` says which), and the rest scaled up."""

    A: Tensor
    B: Tensor
    scale: float = 1.0
    dropout: float = 0.0
    seed: int = 0

    def masked(self, x: Tensor) -> Tensor:
        """x ``[n, in]`` after dropout; the same for the same seed."""
        if not self.dropout:
            return x
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(x.shape, generator=generator) >= self.dropout
        return x * kept.to(x.device) / (1 - self.dropout)

    def to(self, device: torch.device) -> Pair:
        """The same on a device."""
        return replace(self, A=self.A.to(device), B=self.B.to(device))

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """y += scale · (x Aᵀ) Bᵀ."""
        y.addmm_(self.masked(x) @ self.A.T, self.B.T, alpha=self.scale)

    def gradients(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those at x, A and B for the gradient g ``[n, out]`` at y."""
        x = self.masked(x)
        at_h = self.scale * (g @ self.B)
        at_B = self.scale * (g.T @ (x @ self.A.T))
        return self.masked_back(at_h @ self.A), at_h.T @ x, at_B

    def masked_back(self, at_x: Tensor) -> Tensor:
        """The gradient before dropout from that behind it: the same entries are left out."""
        return self.masked(at_x)


PairsOf = Callable[[str], Sequence[Pair]]
"""Weight → its pairs. Where A and B of a pair require gradients, they are trained."""


def frozen_pairs(base: PackedBase, name: str) -> list[Pair]:
    """L·R of a packed weight, as it is stored."""
    if name not in base.ranks:
        return []
    L, R = (part.dequantize() for part in base.pair(name))
    return [Pair(R, L)]


class _Product(torch.autograd.Function):
    """y = x Wᵀ + Σ scale·(x Aᵀ) Bᵀ, with W read in the forward and again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        read: Callable[[], Tensor],
        arithmetic: Arithmetic,
        pairs: Sequence[Pair],
        *leaves: Tensor,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = arithmetic.product(flat, read())
        for pair in pairs:
            pair.add_to(y, flat)
        ctx.save_for_backward(x)
        ctx.read, ctx.arithmetic, ctx.pairs = read, arithmetic, pairs
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        flat, g = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, gradients[0].shape[-1])
        wants_x = ctx.needs_input_grad[0]
        at_x = ctx.arithmetic.input_gradient(g, ctx.read()) if wants_x else None
        at_leaves: list[Tensor] = []
        for pair in ctx.pairs:
            trained = pair.A.requires_grad
            if not trained and not wants_x:
                continue
            own, at_A, at_B = pair.gradients(flat, g)
            if at_x is not None:
                at_x += own
            at_leaves += [at_A, at_B] if trained else []
        return (None if at_x is None else at_x.view_as(x), None, None, None, *at_leaves)


class _Read(Mapping[str, Tensor]):
    """A block's tensors by role, read when they are asked for: vectors once, matrices always."""

    def __init__(self, names: Mapping[str, str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, role: str) -> Tensor:
        return self._read(self._names[role])

    def __contains__(self, role: object) -> bool:
        return role in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class PackedBlock(Block):
    """A block that multiplies by `product` instead of weights in memory."""

    product: Linear | None = None

    def linear(self, role: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """See `Block`."""
        if self.product is None or dtype is not None:
            return super().linear(role, x, dtype)
        return self.product(role, x)


@dataclass
class FrozenModel:
    """The model of a packed `checkpoint` (Q). Its products are computed by `arithmetic`, on
    `device`; pairs may lie elsewhere, trained ones excepted."""

    checkpoint: Checkpoint
    arithmetic: Arithmetic
    vectors: dict[str, Tensor] = field(default_factory=dict)
    device: torch.device = CPU

    def __post_init__(self) -> None:
        self.reader = reader_for(self.checkpoint, self.device)
        self.decoder = Decoder(self.checkpoint, device=self.device)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.checkpoint.dimensions.num_hidden_layers

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """The first block's inputs ``[batch, time, hidden]`` of tokens from the position `start`
        on; only the rows in use are decoded."""
        name = self.checkpoint.architecture.hf_name("token_embd")
        used, places = torch.unique(tokens.cpu(), return_inverse=True)
        table, per_layer = self.reader.picked(name, used).clone(), None
        if self.checkpoint.dimensions.hidden_size_per_layer_input:
            rows = self.reader.picked(self.decoder.per_layer_table, used)
            per_layer = rows[places.to(self.device)]
        return self.decoder.embed(places, table, start, per_layer)

    def apply(self, index: int, x: Tensor, pairs: PairsOf) -> Tensor:
        """Block `index` on x ``[batch, time, hidden]``; differentiable by x and trained pairs."""
        return self.block(index, pairs)(x)

    def block(self, index: int, pairs: PairsOf) -> PackedBlock:
        """Block `index`, none of whose matrices is in memory."""
        present = self.decoder.block_names(index)
        weights = _Read(present, self._tensor)

        def product(role: str, x: Tensor) -> Tensor:
            y = self._product(present[role], x, pairs(present[role]))
            bias = f"{role}.bias"
            return y + weights[bias] if bias in weights else y

        d, family = self.checkpoint.dimensions.block(index), self.checkpoint.architecture
        carried = self.decoder.carried_by(index)
        return PackedBlock(d, weights, self.decoder.rotary(index), family, carried, product)

    def _product(self, name: str, x: Tensor, pairs: Sequence[Pair]) -> Tensor:
        pairs = [pair.to(self.device) for pair in pairs]
        leaves = [leaf for pair in pairs if pair.A.requires_grad for leaf in (pair.A, pair.B)]
        y: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, lambda: self.reader.matrix(name), self.arithmetic, pairs, *leaves
        )
        return y

    def _tensor(self, name: str) -> Tensor:
        """A matrix, or a norm's gain, a bias or a kernel, which stay in memory."""
        if self.checkpoint.specs[name].is_matrix:
            return self.reader.matrix(name)
        if name not in self.vectors:
            self.vectors[name] = self.checkpoint.tensor(name).to(self.device)
        return self.vectors[name]

    def head(self, pairs: PairsOf) -> PackedHead:
        """Final norm and output matrix."""
        d = self.checkpoint.dimensions
        names, name = self.decoder.head_names()
        vectors = {role: self._tensor(vector) for role, vector in names.items()}
        if "output_norm" not in vectors:
            raise EdgepackError("the model has no final norm")
        pair = next((pair.to(self.device) for pair in pairs(name)), None)
        return PackedHead(self.reader, name, vectors, d, pair)


@dataclass(frozen=True)
class PackedHead:
    """The final norm, and the output matrix `name` ``[vocab, hidden]`` read in runs of rows."""

    reader: Reader
    name: str
    vectors: Mapping[str, Tensor]
    dimensions: Dimensions
    pair: Pair | None = None
    """L and R of an untied head, which are not trained."""

    @property
    def vocab(self) -> int:
        """Rows of the output matrix."""
        return self.reader.checkpoint.specs[self.name].shape[0]

    def normalize(self, x: Tensor) -> Tensor:
        """Hidden states ``[n, hidden]`` → the inputs of the output matrix."""
        bias, d = self.vectors.get("output_norm.bias"), self.dimensions
        return norm(x, self.vectors["output_norm"], bias, d.rms_norm_eps, d.hidden_size)

    def logits(self, h: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """Logits ``[n, rows]`` of normed states, for a run of the matrix's rows."""
        return finish(functional.linear(h, W, bias), self.dimensions)

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """The output matrix in runs of `rows`: which rows, their values, their bias if any."""
        bias = self.vectors.get("output.bias")
        for start in range(0, self.vocab, rows):
            part = slice(start, min(start + rows, self.vocab))
            W = self.reader.rows(self.name, range(part.start, part.stop))
            if self.pair is not None:
                W = torch.addmm(W, self.pair.B[part], self.pair.A)
            yield part, W, None if bias is None else bias[part]
