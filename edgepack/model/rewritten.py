# ruff: noqa: D102  (documented in `Checkpoint`)
"""A checkpoint that computes its weights from another checkpoint's, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gguf import GGUFValueType
from torch import Tensor

from edgepack.checkpoint import gguf_mixers, gguf_sized_kinds
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.checkpoint.digests import combine
from edgepack.core.weights import QuantizedTensor, WeightSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES = {
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "rotary_dim",
}
"""GGUF's key → our name of a dimension. A rewriting may change these, or llama.cpp would otherwise
derive them from ones that it changes."""
KV_HEADS, WIDTHS = "attention.head_count_kv", "feed_forward_length"
EPSILON = "attention.layer_norm_rms_epsilon"
ARCHITECTURE = "general.architecture"


class Rewritten(Checkpoint):
    """`original` with other dimensions and weights; `about` describes the change, for the manifest
    and the cache. Subclasses define `tensor`."""

    def __init__(
        self,
        original: Checkpoint,
        dimensions: Dimensions,
        specs: Mapping[str, WeightSpec],
        about: Mapping[str, Any],
    ) -> None:
        self.base, self.about = original, dict(about)
        self.architecture, self.dimensions, self.specs = original.architecture, dimensions, specs

    @property
    def original(self) -> Checkpoint:
        return self.base.original

    @property
    def counted(self) -> Checkpoint:
        return self.base.counted

    @property
    def source(self) -> Mapping[str, Any]:
        return {**self.base.source, **self.about}

    @property
    def key(self) -> str:
        return combine({"original": self.base.key} | {k: str(v) for k, v in self.about.items()})

    def quantized(self, name: str) -> QuantizedTensor | None:
        return None  # the grid of a rewritten weight is not the source's

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.base.tokenizer

    def warnings(self) -> tuple[str, ...]:
        return self.base.warnings()

    def gguf_warnings(self) -> tuple[str, ...]:
        return self.base.gguf_warnings()

    def extra_tensors(self) -> Mapping[str, Tensor]:
        return self.base.extra_tensors()

    def generation_config(self) -> Mapping[str, Any]:
        return self.base.generation_config()

    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        before, prefix = self.base.architecture.gguf, self.architecture.gguf
        kept = {
            prefix + key.removeprefix(before) if key.startswith(f"{before}.") else key: entry
            for key, entry in self.base.gguf_metadata().items()
        }
        own = {f"{prefix}.{key}": getattr(self.dimensions, name) for key, name in SIZES.items()}
        own[f"{prefix}.{KV_HEADS}"] = gguf_mixers.kv_heads(self.dimensions)
        own[f"{prefix}.{WIDTHS}"] = gguf_sized_kinds.inner_widths(self.dimensions)
        return {
            **kept,
            ARCHITECTURE: (prefix, GGUFValueType.STRING, None),
            **{key: _entry(value) for key, value in own.items()},
            f"{prefix}.{EPSILON}": (self.dimensions.rms_norm_eps, GGUFValueType.FLOAT32, None),
        }


def _entry(value: int | list[int]) -> tuple[Any, GGUFValueType, None]:
    kind = GGUFValueType.ARRAY if isinstance(value, list) else GGUFValueType.UINT32
    return value, kind, None


def untied_specs(base: Checkpoint) -> list[WeightSpec]:
    """All weights of the model after its head is untied."""
    head, tied = base.architecture.hf_name("output"), base.architecture.hf_name("token_embd")
    more = [] if head in base.specs else [replace(base.specs[tied], name=head, role="output")]
    return [*base.specs.values(), *more]


def untied_name(base: Checkpoint, name: str) -> str:
    """The name in `base` of the weight `name` of the untied model."""
    return name if name in base.specs else base.architecture.hf_name("token_embd")
