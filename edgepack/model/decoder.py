"""The forward pass of a decoder, one block in memory at a time: embedding, blocks, head.

Every family of `architectures` has the same block (`model.block`). Its variants follow from the
weights and dimensions of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.checkpoint._layout import block_parts
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.core.hardware import available_memory
from edgepack.core.parts import part_name
from edgepack.errors import CheckpointError
from edgepack.model import rotary
from edgepack.model.block import Block, Cache, empty_cache, norm, soft_cap
from edgepack.model.rotary import Rotary


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
        self._learned = "position_embd" in self.checkpoint.architecture.outside
        self._rotaries: dict[tuple[object, ...], Rotary] = {}

    def rotary(self, index: int) -> Rotary | None:
        """The rotary positions of block `index`, None if it has none."""
        d = self.dimensions.block(index)
        if self._learned or not d.partial_rotary_factor:
            return None
        key = rotary.key(d)
        if key not in self._rotaries:
            neighbours = self.checkpoint.architecture.neighbours
            self._rotaries[key] = Rotary(d, neighbours=neighbours)
        return self._rotaries[key]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden states before every block and, last, before the head. They differ
        only in a model that is sliced per block."""
        family, specs = self.checkpoint.architecture, self.checkpoint.specs
        blocks = range(self.dimensions.num_hidden_layers)
        first = "attn_norm" if "attn_norm" in family.block else "ffn_up"
        readers = [*(family.hf_name(first, i) for i in blocks), family.hf_name("output_norm")]
        return tuple(specs[reader].shape[-1] for reader in readers)

    def _load(self, name: str) -> Tensor:
        return self.replaced[name]() if name in self.replaced else self.checkpoint.tensor(name)

    def block(self, index: int) -> Block:
        """Block `index` with its weights in memory."""
        weights = {role: self._load(name) for role, name in self.block_names(index).items()}
        d, family = self.dimensions.block(index), self.checkpoint.architecture
        return Block(d, weights, self.rotary(index), family)

    def block_names(self, index: int) -> dict[str, str]:
        """Role → name of the tensors that block `index` has; for experts' see
        `core.parts.part_name`."""
        family, d = self.checkpoint.architecture, self.checkpoint.dimensions
        names = {
            part_name(role, expert): family.hf_name(role, index, expert)
            for role, expert in block_parts(family, d, index)
        }
        return {role: name for role, name in names.items() if name in self.checkpoint.specs}

    def caches(self, batch: int, capacity: int) -> list[Cache]:
        """An empty cache for every block."""
        d = self.dimensions
        return [
            empty_cache(self.block_names(i), batch, capacity, d.block(i))
            for i in range(d.num_hidden_layers)
        ]

    def embedding(self) -> Tensor:
        """Token embeddings ``[vocab, hidden]``."""
        return self._load(self.checkpoint.architecture.hf_name("token_embd"))

    def embed(self, tokens: Tensor, embedding: Tensor | None = None, start: int = 0) -> Tensor:
        """The first block's inputs ``[…, time, hidden]`` for token ids ``[…, time]`` at the
        positions from `start` on: the token embeddings (read from disk unless given), plus position
        embeddings if the model has them."""
        x = (self.embedding() if embedding is None else embedding)[tokens]
        if (scale := self.dimensions.embedding_scale) != 1.0:
            x = scale * x
        if not self._learned:
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
        return Head.from_vectors(loaded, self._load(output), d)

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


def finish(product: Tensor, dimensions: Dimensions) -> Tensor:
    """The output matrix's products → logits: scaled, and softly capped."""
    d = dimensions
    if d.logit_scale != 1.0:
        product = d.logit_scale * product
    return product if d.logit_softcap is None else soft_cap(product, d.logit_softcap)


def slope(logits: Tensor, dimensions: Dimensions) -> Tensor | float:
    """The derivative of `finish`, from the logits that it gave."""
    d = dimensions
    if d.logit_softcap is None:
        return d.logit_scale
    return d.logit_scale * (1 - (logits / d.logit_softcap).square())


@dataclass(frozen=True)
class Head:
    """The final norm (RMSNorm, or LayerNorm if it has a bias) and the output matrix ``[vocab,
    hidden]``, with its bias if any; the products are scaled and softly capped as `dimensions` say.
    """

    norm: Tensor
    output: Tensor
    dimensions: Dimensions
    norm_bias: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def from_vectors(
        cls, vectors: Mapping[str, Tensor], output: Tensor, dimensions: Dimensions
    ) -> Head:
        """A head with some `vectors` by role, and the matrix `output`."""
        norm, *biases = (vectors.get(role) for role in HEAD_VECTORS)
        if norm is None:
            raise CheckpointError("the model has no final norm")
        return cls(norm, output, dimensions, *biases)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The norm and the biases, by role."""
        values = zip(HEAD_VECTORS, (self.norm, self.norm_bias, self.bias), strict=True)
        return {role: value for role, value in values if value is not None}

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Head:
        """The same head with other `vectors`."""
        return Head.from_vectors(vectors, self.output, self.dimensions)

    def to(self, device: torch.device) -> Head:
        """The same head on a device."""
        vectors = {role: value.to(device) for role, value in self.vectors.items()}
        return Head.from_vectors(vectors, self.output.to(device), self.dimensions)

    def normalize(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → the inputs of the output matrix."""
        d = self.dimensions
        return norm(x, self.norm, self.norm_bias, d.rms_norm_eps, d.hidden_size)

    def product(self, normed: Tensor) -> Tensor:
        """The output of `normalize` → the matrix's output ``[…, vocab]``."""
        return functional.linear(normed, self.output, self.bias)

    def finish(self, product: Tensor) -> Tensor:
        """The matrix's output → logits."""
        return finish(product, self.dimensions)

    def logits(self, normed: Tensor) -> Tensor:
        """The output of `normalize` → logits ``[…, vocab]``."""
        return self.finish(self.product(normed))

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → logits ``[…, vocab]``."""
        return self.logits(self.normalize(x))
