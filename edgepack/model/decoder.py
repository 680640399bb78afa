"""The forward pass of a decoder, one block in memory at a time: embedding, blocks, head.

Every family of `architectures` has the same pre-norm block (`model.block`). Its variants follow
from the weights and dimensions of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.checkpoint.base import Checkpoint
from edgepack.core.hardware import available_memory
from edgepack.errors import CheckpointError
from edgepack.model.block import Block, Rotary, norm


@dataclass
class Decoder:
    """Embedding, blocks and head of a checkpoint, loaded on demand.

    `replaced` gives other float32 weights for some names (for example the packed ones).
    """

    checkpoint: Checkpoint
    replaced: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    stays: ClassVar[bool] = True
    """Whether all of it may stay in memory where it fits."""

    def __post_init__(self) -> None:
        self.dimensions = self.checkpoint.dimensions
        learned = "position_embd" in self.checkpoint.architecture.outside
        self.rotary = None if learned else Rotary(self.dimensions)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden states before every block and, last, before the head. They differ
        only in a model that is sliced per block."""
        family, specs = self.checkpoint.architecture, self.checkpoint.specs
        blocks = range(self.dimensions.num_hidden_layers)
        norms = [*(family.hf_name("attn_norm", i) for i in blocks), family.hf_name("output_norm")]
        return tuple(specs[norm].shape[0] for norm in norms)

    def _load(self, name: str) -> Tensor:
        return self.replaced[name]() if name in self.replaced else self.checkpoint.tensor(name)

    def block(self, index: int) -> Block:
        """Block `index` with its weights in memory."""
        weights = {role: self._load(name) for role, name in self.block_names(index).items()}
        return Block(self.dimensions, weights, self.rotary, self.checkpoint.architecture.activation)

    def block_names(self, index: int) -> dict[str, str]:
        """Role → name of the tensors that block `index` has."""
        architecture = self.checkpoint.architecture
        roles = (*architecture.block, *architecture.optional)
        names = {role: architecture.hf_name(role, index) for role in roles}
        return {role: name for role, name in names.items() if name in self.checkpoint.specs}

    def embedding(self) -> Tensor:
        """Token embeddings ``[vocab, hidden]``."""
        return self._load(self.checkpoint.architecture.hf_name("token_embd"))

    def embed(self, tokens: Tensor, embedding: Tensor | None = None, start: int = 0) -> Tensor:
        """The first block's inputs ``[…, time, hidden]`` for token ids ``[…, time]`` at the
        positions from `start` on: the token embeddings (read from disk unless given), plus position
        embeddings if the model has them."""
        x = (self.embedding() if embedding is None else embedding)[tokens]
        if self.rotary is not None:
            return x
        architecture = self.checkpoint.architecture
        table = self._load(architecture.hf_name("position_embd"))
        first = architecture.unused_positions + start
        return x + table[first : first + tokens.shape[-1]]

    def embed_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """`embed` of several runs of token ids; the embeddings are read once."""
        embedding = self.embedding()
        return (self.embed(tokens, embedding) for tokens in parts)

    def ends(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]:
        """What turns last hidden states into logits, and what turns tokens at a position into first
        hidden states (see `embed`), for text that is written token by token."""
        head = self.head()
        table = head.output if self.dimensions.tie_word_embeddings else self.embedding()
        return head, lambda tokens, start: self.embed(tokens, table, start)

    def head(self) -> Head:
        """Final norm and output matrix."""
        d = self.dimensions
        vectors, output = self.head_names()
        loaded = {role: self._load(name) for role, name in vectors.items()}
        return Head.from_vectors(loaded, self._load(output), d.rms_norm_eps, d.hidden_size)

    def head_names(self) -> tuple[dict[str, str], str]:
        """Role → name of the head's vectors, and the name of the output matrix."""
        architecture, tied = self.checkpoint.architecture, self.dimensions.tie_word_embeddings
        names = {role: architecture.outside.get(role, "") for role in HEAD_VECTORS}
        present = {role: n for role, n in names.items() if n in self.checkpoint.specs}
        return present, architecture.hf_name("token_embd" if tied else "output")

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits ``[batch, time, vocab]`` of token ids ``[batch, time]``."""
        x = self.embed(tokens)
        for index in range(self.dimensions.num_hidden_layers):
            x = self.block(index)(x)
        return self.head()(x)


def fits_in_memory(decoder: Decoder) -> bool:
    """Whether the model may stay in memory as float32, because it takes less than a quarter."""
    size = 4 * sum(spec.numel for spec in decoder.checkpoint.specs.values())
    return size < available_memory() // 4


HEAD_VECTORS = ("output_norm", "output_norm.bias", "output.bias")
"""Roles of a head's vectors, in the order of `Head.vectors`."""


@dataclass(frozen=True)
class Head:
    """The final norm (RMSNorm, or LayerNorm if it has a bias) and the output matrix ``[vocab,
    hidden]``, with its bias if any."""

    norm: Tensor
    output: Tensor
    eps: float
    width: int | None = None
    norm_bias: Tensor | None = None
    bias: Tensor | None = None

    @staticmethod
    def from_vectors(
        vectors: Mapping[str, Tensor], output: Tensor, eps: float, width: int | None
    ) -> Head:
        """A head with some `vectors` by role, and the matrix `output`."""
        norm, *biases = (vectors.get(role) for role in HEAD_VECTORS)
        if norm is None:
            raise CheckpointError("the model has no final norm")
        return Head(norm, output, eps, width, *biases)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The norm and the biases, by role."""
        values = zip(HEAD_VECTORS, (self.norm, self.norm_bias, self.bias), strict=True)
        return {role: value for role, value in values if value is not None}

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Head:
        """The same head with other `vectors`."""
        return Head.from_vectors(vectors, self.output, self.eps, self.width)

    def to(self, device: torch.device) -> Head:
        """The same head on a device."""
        vectors = {role: value.to(device) for role, value in self.vectors.items()}
        return Head.from_vectors(vectors, self.output.to(device), self.eps, self.width)

    def normalize(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → the inputs of the output matrix."""
        return norm(x, self.norm, self.norm_bias, self.eps, self.width)

    def logits(self, normed: Tensor) -> Tensor:
        """The output of `normalize` → logits ``[…, vocab]``."""
        return functional.linear(normed, self.output, self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → logits ``[…, vocab]``."""
        return self.logits(self.normalize(x))
