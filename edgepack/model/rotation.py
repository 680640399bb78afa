"""Fuse orthogonal rotations into the weights, so that no coordinate of an input stands out.

QuaRot's offline rotations (Ashkboos et al., arXiv 2404.00456, section 4). The residual stream is
rotated: every weight that reads it becomes W·diag(γ)·R, every one that writes it RᵀW, and the gains
become 1. The values are rotated head by head, before the output projection mixes them. Signs are
random, from a fixed seed. A tied head cannot take the final norm's gains, so in tied models only
the values are rotated.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from edgepack.architectures.base import NORMS, WRITE
from edgepack.checkpoint import Checkpoint
from edgepack.core.hadamard import paley_order, random_hadamard
from edgepack.core.weights import WeightSpec
from edgepack.errors import RecipeError, while_doing
from edgepack.model._plain import refuse_other_streams
from edgepack.model.rewritten import Rewritten

VALUES = {"attn_v": 0, "attn_output": 1}
"""The dimension of a weight that runs over values, head after head."""
_ROWS = 8192  # rows at once in float64
_SEED = 0


class Rotated(Rewritten):
    """A checkpoint with Hadamard rotations fused in, computed weight by weight in float64."""

    def __init__(self, original: Checkpoint) -> None:
        refuse_other_streams(original, "compress.rotate")
        _refuse_fixed(original)
        about = {"rotate": "hadamard"}
        super().__init__(original, original.dimensions, original.specs, about)
        with while_doing("compress.rotate"):  # widths without a Hadamard matrix are refused here
            paley_order(self.dimensions.head_dim)
            if self.stream:
                paley_order(self.dimensions.hidden_size)

    @property
    def stream(self) -> bool:
        """Whether the residual stream is rotated."""
        return not self.dimensions.tie_word_embeddings

    @cached_property
    def _values(self) -> Tensor:
        return random_hadamard(self.dimensions.head_dim, _SEED)

    @cached_property
    def _residual(self) -> Tensor:
        return random_hadamard(self.dimensions.hidden_size, _SEED)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        spec, value = self.specs[name], self.base.tensor(name)
        stem, _, kind = spec.role.partition(".")
        if stem == "attn_qkv":  # the last rows are those of v
            width = self.dimensions.num_key_value_heads * self.dimensions.head_dim
            rows = _by_head(value[-width:], self._values, 0)
            value = torch.cat([value[:-width].double(), rows])
        elif stem in VALUES and not self.architecture.gated_queries:
            value = _by_head(value, self._values, VALUES[stem])
        if self.stream and kind != "bias":
            value = self._in_stream(value, spec)
        return value.float()

    def _in_stream(self, value: Tensor, spec: WeightSpec) -> Tensor:
        R = self._residual
        if spec.role in NORMS:
            return torch.ones_like(value)
        if spec.role in WRITE:
            return R.T @ value.double()
        read_behind = self.architecture.read_behind
        if spec.role in read_behind:
            norm = self.architecture.hf_name(read_behind[spec.role], spec.block)
            R = self.base.tensor(norm).double()[:, None] * R
        elif spec.role != "token_embd":
            return value  # norms of heads
        return torch.cat([(rows.double() @ R).float() for rows in torch.split(value, _ROWS)])


def _refuse_fixed(checkpoint: Checkpoint) -> None:
    """Refuse a model in which neither the residual stream nor the values can be rotated."""
    family = checkpoint.architecture
    if family.gated_queries and checkpoint.dimensions.tie_word_embeddings:
        raise RecipeError(
            f"compress.rotate: a {family.name} model whose head is tied to the embeddings has "
            "nothing that can be rotated, because attention's output is gated",
            hint="remove compress.rotate",
        )


def _by_head(value: Tensor, R: Tensor, dim: int) -> Tensor:
    """Rotate a dimension head by head."""
    heads = torch.unflatten(value.double().movedim(dim, -1), -1, (-1, len(R)))
    return torch.movedim((heads @ R).flatten(-2), -1, dim)
