"""The forward pass of a decoder, one block in memory at a time: embedding, blocks, head.

Every family of `architectures` has the same block (`model.block`). Its variants follow from the
weights and dimensions of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.checkpoint._layout import block_parts
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.core.accelerator import CPU, free_memory
from edgepack.core.hardware import available_memory
from edgepack.core.parts import part_name
from edgepack.errors import CheckpointError
from edgepack.model import carried, rotary
from edgepack.model.block import Block, Cache, empty_cache, norm, soft_cap
from edgepack.model.carried import Carried, with_inputs
from edgepack.model.rotary import Rotary


@dataclass
class Decoder:
    """Embedding, blocks and head of a checkpoint, loaded on demand, onto `device`.

    `replaced` gives other float32 weights for some names (for example the packed ones). Token ids
    may lie anywhere; hidden states come out on the device, and have to be there to go in.
    """

    checkpoint: Checkpoint
    replaced: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    device: torch.device = CPU
    stays: ClassVar[bool] = True
    """Whether all of it may stay in memory where it fits."""

    def __post_init__(self) -> None:
        self.dimensions = self.checkpoint.dimensions
        self._learned = "position_embd" in self.checkpoint.architecture.outside
        self._rotaries: dict[tuple[object, ...], Rotary] = {}
        self.carried = None
        if self.checkpoint.architecture.sized_kinds:
            self.carried = carried.plan(self.dimensions)

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
        only in a model that is sliced per block, or whose stream carries more than the hidden state
        (`model.carried`)."""
        if self.carried is not None:
            return carried.widths(self.dimensions)
        family, specs = self.checkpoint.architecture, self.checkpoint.specs
        blocks = range(self.dimensions.num_hidden_layers)
        first = "attn_norm" if "attn_norm" in family.block else "ffn_up"
        readers = [*(family.hf_name(first, i) for i in blocks), family.hf_name("output_norm")]
        return tuple(specs[reader].shape[-1] for reader in readers)

    def _load(self, name: str) -> Tensor:
        own = name in self.replaced
        return (self.replaced[name]() if own else self.checkpoint.tensor(name)).to(self.device)

    def block(self, index: int) -> Block:
        """Block `index` with its weights in memory."""
        weights = {role: self._load(name) for role, name in self.block_names(index).items()}
        d, family = self.dimensions.block(index), self.checkpoint.architecture
        return Block(d, weights, self.rotary(index), family, self.carried_by(index))

    def carried_by(self, index: int) -> Carried | None:
        """What the input of block `index` carries beside the hidden state."""
        return self.carried[index] if self.carried is not None else None

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
            empty_cache(self.block_names(i), batch, capacity, d.block(i), self.device)
            for i in range(d.num_hidden_layers)
        ]

    def embedding(self) -> Tensor:
        """Token embeddings ``[vocab, hidden]``."""
        return self._load(self.checkpoint.architecture.hf_name("token_embd"))

    def embed(
        self,
        tokens: Tensor,
        embedding: Tensor | None = None,
        start: int = 0,
        per_layer: Tensor | None = None,
    ) -> Tensor:
        """The first block's inputs ``[…, time, hidden]`` for token ids ``[…, time]`` at the
        positions from `start` on: the token embeddings (read from disk unless given), plus position
        embeddings if the model has them. If blocks have inputs of their own, these are columns
        behind, from the rows `per_layer` of their table (read from disk unless given)."""
        tokens = tokens.to(self.device)
        x = (self.embedding() if embedding is None else embedding)[tokens]
        if (scale := self.dimensions.embedding_scale) != 1.0:
            x = scale * x
        if self.dimensions.hidden_size_per_layer_input:
            rows = self._rows(self.per_layer_table, tokens) if per_layer is None else per_layer
            return with_inputs(x, rows, *self._projection, self.dimensions)
        if not self._learned:
            return x
        architecture = self.checkpoint.architecture
        table = self._load(architecture.hf_name("position_embd"))
        first = architecture.unused_positions + start
        return x + table[first : first + tokens.shape[-1]]

    @property
    def per_layer_table(self) -> str:
        """The name of the table from whose rows blocks have inputs of their own."""
        return self.checkpoint.architecture.hf_name("per_layer_token_embd")

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor]:
        """What turns embeddings into inputs of blocks, and the gain of the norm behind."""
        name = self.checkpoint.architecture.hf_name
        return self._load(name("per_layer_model_proj")), self._load(name("per_layer_proj_norm"))

    def _rows(self, name: str, tokens: Tensor) -> Tensor:
        """The rows of a table that tokens have; nothing else of the file is read."""
        if name in self.replaced:
            return self._load(name)[tokens.to(self.device)]
        used, places = torch.unique(tokens.cpu(), return_inverse=True)
        return self.checkpoint.rows(name, used)[places].to(self.device)

    def embedding_gradient(self, tokens: Tensor, g: Tensor) -> Tensor:
        """The gradient at the rows of the embedding that tokens have, from that at the first
        block's input `g` ``[…, time, width]``."""
        if not self.dimensions.hidden_size_per_layer_input:
            return self.dimensions.embedding_scale * g
        name = self.checkpoint.architecture.hf_name("token_embd")
        rows = self._rows(name, tokens).requires_grad_()
        flat = torch.arange(tokens.numel()).view(tokens.shape)
        with torch.enable_grad():
            per_layer = self._rows(self.per_layer_table, tokens)
            x = self.embed(flat, rows.flatten(0, -2), per_layer=per_layer)
        return torch.autograd.grad(x, rows, g)[0]

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
    """Whether the model may stay in memory as float32, because it takes less than a quarter; on
    another device, of what is free there."""
    size = 4 * sum(spec.numel for spec in decoder.checkpoint.specs.values())
    device = decoder.device
    there = available_memory() if device == CPU else free_memory(device)
    return size < there // 4


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

    def multiplying(self, dtype: torch.dtype) -> Head:
        """The same head with the output matrix in `dtype`, in which its product is computed."""
        return Head.from_vectors(self.vectors, self.output.to(dtype), self.dimensions)

    def normalize(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → the inputs of the output matrix."""
        d = self.dimensions
        return norm(x, self.norm, self.norm_bias, d.rms_norm_eps, d.hidden_size)

    def product(self, normed: Tensor) -> Tensor:
        """The output of `normalize` → the matrix's output ``[…, vocab]``, float32."""
        if self.output.dtype == normed.dtype:
            return functional.linear(normed, self.output, self.bias)
        y = functional.linear(normed.to(self.output.dtype), self.output).float()
        return y if self.bias is None else y + self.bias

    def finish(self, product: Tensor) -> Tensor:
        """The matrix's output → logits."""
        return finish(product, self.dimensions)

    def logits(self, normed: Tensor) -> Tensor:
        """The output of `normalize` → logits ``[…, vocab]``."""
        return self.finish(self.product(normed))

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states ``[…, hidden]`` → logits ``[…, vocab]``."""
        return self.logits(self.normalize(x))
