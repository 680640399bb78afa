"""The interface of checkpoints from all kinds of sources."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from edgepack.architectures.base import CONV, FULL, LINEAR, NO_ROPE, SLIDING, Architecture
from edgepack.checkpoint.source_files import Known
from edgepack.core.weights import QuantizedTensor, WeightSpec
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Dimensions:
    """The dimensions and factors of a decoder, with the names of Hugging Face's config.

    `sliding_window` is a number of positions, the token's own included; `partial_rotary_factor`
    the share of a head that turns (0: none). Embeddings are multiplied by `embedding_scale`, what
    attention and MLP write by `residual_scale`, q·k by `attention_scale` (None: 1/√head_dim) and
    logits by `logit_scale`. A soft cap c turns x into c·tanh(x/c). `layer_types` has the kind of
    every block, empty if all are alike; `kinds` says what blocks of a kind have instead. A causal
    convolution sees `conv_kernel` positions. The heads of a gated delta net have sizes of their
    own. Every block gets an input of `hidden_size_per_layer_input` columns from a second table of
    embeddings (0: none). A token meets `num_experts_per_tok` of `num_experts` experts, in all
    blocks but the first `num_dense_layers`. `rope_sections` are the shares of an image's axes in
    the rotary positions; in text all axes have the same position.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    sliding_window: int | None
    tie_word_embeddings: bool
    partial_rotary_factor: float = 1.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    layer_types: tuple[str, ...] = ()
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    conv_kernel: int = 0
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    num_dense_layers: int = 0
    rope_sections: tuple[int, ...] = ()
    hidden_size_per_layer_input: int = 0

    def kind(self, index: int) -> str | None:
        """The kind of block `index`; None if all are alike."""
        return self.layer_types[index] if self.layer_types else None

    def block(self, index: int) -> Dimensions:
        """Those of block `index`, as if all blocks were like it."""
        if not self.layer_types:
            return self
        own = self.kinds.get(self.layer_types[index], {})
        return replace(self, layer_types=(), kinds={}, **own)

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that turn with the position."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def score_scale(self) -> float:
        """The factor of q·k."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale


def factors(found: Mapping[str, float], head_dim: int) -> dict[str, Any]:
    """Factors and soft caps as `Dimensions` has them: those that it has anyway are left out."""

    def is_usual(name: str, value: float) -> bool:
        if name == "attention_scale":
            return math.isclose(value, head_dim**-0.5)
        return bool(value == getattr(Dimensions, name))

    return {name: value for name, value in found.items() if not is_usual(name, value)}


def kinds_of(
    types: Sequence[str], sliding: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """`Dimensions.kinds` of some `layer_types`; `sliding` is what blocks with a window have of
    their own."""
    own: dict[str, dict[str, Any]] = {
        FULL: {"sliding_window": None},
        SLIDING: dict(sliding),
        NO_ROPE: {"sliding_window": None, "partial_rotary_factor": 0.0},
        CONV: {"partial_rotary_factor": 0.0},
        LINEAR: {"partial_rotary_factor": 0.0},
    }
    return {kind: own[kind] for kind in sorted(set(types))}


@dataclass(frozen=True)
class OwnCode:
    """A modelling file for transformers, and the entries of config.json that it reads. Its classes
    are named `prefix` + the family's class."""

    file: Path
    prefix: str
    config: Mapping[str, Any]


class Checkpoint(ABC):
    """Lazy tensors, dimensions and tokenizer of one model.

    Opening reads headers only. Names, shapes and the order of rows are always Hugging Face's: q and
    k of a llama GGUF are converted from llama.cpp's rotary order on reading. Only the value heads
    of a gated delta net are in llama.cpp's order (see `values`).
    """

    architecture: Architecture
    dimensions: Dimensions
    specs: Mapping[str, WeightSpec]
    """Every weight by its Hugging Face name; a tied head has no entry."""

    def __copy__(self) -> Self:
        """A copy here, which shares what is open (elsewhere a checkpoint is opened again)."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    @property
    def original(self) -> Checkpoint:
        """The checkpoint that this one was made from, or this one itself."""
        return self

    @property
    def counted(self) -> Checkpoint:
        """The checkpoint whose number of weights divides the bits, for bits per weight: zeros that
        pad a weight do not count."""
        return self

    @property
    @abstractmethod
    def source(self) -> Mapping[str, Any]:
        """Where it came from, for the manifest: model, kind, revision or the files' sha256."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Hex digest of the bytes of the model and the tokenizer."""

    def file_digests(self) -> Mapping[str, str]:
        """sha256 of every file that is read, by name; empty where weights are computed."""
        return {}

    def trust(self, known: tuple[Known, ...]) -> None:  # noqa: B027
        """Take digests of files over from another process that reads them."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One weight as float32, lossless for every source type that float32 can hold."""

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a matrix as float32, by their numbers ``[n]``; checkpoints whose files allow
        it read nothing else."""
        return self.tensor(name)[rows]

    def stored(self, name: str) -> tuple[Tensor, str]:
        """A weight as the file stores it, and its type (`WeightSpec.dtype`): a float tensor, or for
        block types the bytes ``[rows, bytes of a row]``. Rows are in the file's order."""
        return self.tensor(name), "F32"

    def warnings(self) -> tuple[str, ...]:
        """Warnings about parts of the source that were not read."""
        return ()

    def gguf_warnings(self) -> tuple[str, ...]:
        """Warnings about parts of the model that a GGUF cannot store."""
        return ()

    @abstractmethod
    def quantized(self, name: str) -> QuantizedTensor | None:
        """The weight as stored if it is in one of edgepack's formats, else None."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer with its chat template, agreeing with llama.cpp token for token."""

    @abstractmethod
    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        """Key → (value, GGUFValueType, element type or None): everything a stock GGUF of this
        model carries (architecture, hyper-parameters, tokenizer, chat template, name, licence),
        without what depends on the quantization."""

    def generation_config(self) -> Mapping[str, Any]:
        """The authors' sampling options (generation_config.json); empty if there are none."""
        return {}

    def own_code(self) -> OwnCode | None:
        """The code that transformers needs to load it; None for models that transformers has."""
        return None

    def extra_tensors(self) -> Mapping[str, Tensor]:
        """Float32 tensors, by GGUF name, that a GGUF needs beside the weights: the frequency
        divisors ``rope_freqs.weight`` ``[head_dim / 2]`` of llama3's rotary scaling."""
        return {}


class AnotherModelError(CheckpointError):
    """A place has another model than it should have. `digests` are those of its files, by name."""

    digests: Mapping[str, str] = MappingProxyType({})


def reopened(
    kind: Callable[..., Checkpoint],
    arguments: tuple[Any, ...],
    key: str,
    known: tuple[Known, ...] = (),
) -> Checkpoint:
    """A checkpoint opened again, in another process or on another machine perhaps, with the content
    that it had. `known` digests are taken over where that is safe."""
    opened = _opened(kind, arguments, known)
    if opened.key != key:
        error = AnotherModelError(
            f"{opened.source['model']}: has changed since the work was handed out",
            hint="run it again, and leave the model alone while it runs",
        )
        error.digests = dict(opened.file_digests())
        raise error
    return opened


@lru_cache(maxsize=4)
def _opened(
    kind: Callable[..., Checkpoint], arguments: tuple[Any, ...], known: tuple[Known, ...]
) -> Checkpoint:
    """Opened once a process: every item of work names its model."""
    opened = kind(*arguments)
    opened.trust(known)
    return opened
