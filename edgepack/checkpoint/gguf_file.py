"""A GGUF file as a checkpoint: names, shapes and row order as Hugging Face has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from edgepack import plugins
from edgepack.architectures._base import Architecture
from edgepack.checkpoint import _layout, digests, rope, special, tokenizer
from edgepack.checkpoint._base import Checkpoint, Dimensions
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.errors import CheckpointError
from edgepack.weights import QuantizedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PASSED_OVER = ("split.", "quantize.")
"""Keys about this file's own quantization and splitting …"""
DROPPED = {"general.file_type", "general.quantization_version", "general.alignment"}
"""… of which these are others."""

FLOATS = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


class GgufCheckpoint(Checkpoint):
    """One ``.gguf`` file, mapped into memory."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._header = GgufHeader(path)
        self._fields = {key: value for key, (value, *_) in self._header.metadata.items()}
        self.architecture = self._architecture()
        self.dimensions = self._dimensions()
        found = {
            name: _layout.Found(stored.shape, stored.kind.name)
            for name, stored in self._header.tensors.items()
            if name != rope.TENSOR
        }
        self.specs, self._stored = _layout.match(
            path.name, self.architecture, self.dimensions, found, self.architecture.gguf_name
        )
        for name in found:
            self._refuse_unreadable(name)

    @cached_property
    def _sha256(self) -> str:
        return digests.sha256(self.path)

    @property
    def key(self) -> str:  # noqa: D102
        return digests.combine({"gguf": self._sha256})

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        return {"model": self.model, "kind": "gguf", "files": {self.path.name: self._sha256}}

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        values = self._values(self._stored[name])
        order = self._hf_rows(name)
        return values if order is None else values[order]

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        spec = self.specs[name]
        format_name = spec.dtype.lower()
        if len(spec.shape) != 2 or format_name not in plugins.names("formats"):
            return None
        data = torch.from_numpy(self._header.bytes_of(self._stored[name]).copy())
        data, order = data.reshape(spec.shape[0], -1), self._hf_rows(name)
        parsed: QuantizedTensor = plugins.find("formats", format_name).parse(
            data if order is None else data[order]
        )
        return parsed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # noqa: D102
        return tokenizer.from_gguf(self._fields, self.path.name)

    def gguf_metadata(self) -> Mapping[str, tuple[Any, GGUFValueType, GGUFValueType | None]]:  # noqa: D102
        return {
            key: entry
            for key, entry in self._header.metadata.items()
            if key not in DROPPED and not key.startswith(PASSED_OVER) and entry[0] != []
        }

    def generation_config(self) -> Mapping[str, Any]:  # noqa: D102
        ends = special.gguf_ends(self._fields)
        return {special.EOS: ends} if len(ends) > 1 else {}

    def extra_tensors(self) -> Mapping[str, Tensor]:  # noqa: D102
        present = rope.TENSOR in self._header.tensors
        return {rope.TENSOR: self._values(rope.TENSOR)} if present else {}

    def _values(self, stored_name: str) -> Tensor:
        """A stored tensor as float32, rows as they are in the file."""
        stored = self._header.tensors[stored_name]
        data = self._header.bytes_of(stored_name)
        if stored.kind in FLOATS:
            values = data.view(FLOATS[stored.kind]).astype(np.float32)
        else:
            values = dequantize(data.reshape(*stored.shape[:-1], -1), stored.kind)
        return torch.from_numpy(values.reshape(stored.shape)).clone()  # aligned as torch does

    def _hf_rows(self, name: str) -> Tensor | None:
        """Which stored row is each of Hugging Face's rows; None where they agree."""
        order = _layout.gguf_rows(self.architecture, self.dimensions, self.specs[name].role)
        return None if order is None else torch.argsort(order)

    def _refuse_unreadable(self, name: str) -> None:
        kind = self._header.tensors[name].kind
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path.name}: {name} is stored as {kind.name}, which cannot be read",
                hint="start from a file with a common type such as Q8_0, Q4_K, F16 or BF16",
            ) from error

    def _architecture(self) -> Architecture:
        name = self._fields.get("general.architecture")
        families: dict[str, Architecture] = {}
        for family in plugins.names("architectures"):  # llama comes before mistral
            architecture: Architecture = plugins.find("architectures", family)
            if architecture.gguf:
                families.setdefault(architecture.gguf, architecture)
        if name not in families:
            raise CheckpointError(
                f"{self.path.name}: architecture {name!r} is not supported",
                hint="supported: " + ", ".join(families),
            )
        if self._fields.get("split.count", 1) > 1:
            raise CheckpointError(
                f"{self.path.name}: one part of a split model",
                hint="join the parts with llama.cpp's llama-gguf-split --merge",
            )
        return families[name]

    def _dimensions(self) -> Dimensions:
        heads = self._number("attention.head_count")
        hidden = self._number("embedding_length")
        head_dim = self._number("attention.key_length", hidden // max(heads, 1))
        self._same("attention.value_length", head_dim)
        self._same("rope.dimension_count", head_dim)
        extra = self._values(rope.TENSOR) if rope.TENSOR in self._header.tensors else None
        tokens = self._fields.get("tokenizer.ggml.tokens", ())
        theta = _decimal(self._number("rope.freq_base", 10000.0))
        return Dimensions(
            num_hidden_layers=self._number("block_count"),
            hidden_size=hidden,
            intermediate_size=self._number("feed_forward_length"),
            num_attention_heads=heads,
            num_key_value_heads=self._number("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=len(tokens) or self._number("vocab_size"),
            max_position_embeddings=self._number("context_length"),
            rms_norm_eps=_decimal(self._number("attention.layer_norm_rms_epsilon")),
            rope_theta=theta,
            rope_scaling=rope.of_gguf(self._arch_fields(), extra, theta, head_dim, self.path.name),
            sliding_window=None,
            tie_word_embeddings="output.weight" not in self._header.tensors,
        )

    def _arch_fields(self) -> dict[str, Any]:
        prefix = f"{self.architecture.gguf}."
        return {k.removeprefix(prefix): v for k, v in self._fields.items() if k.startswith(prefix)}

    def _number(self, key: str, default: Any = None) -> Any:
        value = self._arch_fields().get(key, default)
        if isinstance(value, int | float):
            return value
        full = f"{self.architecture.gguf}.{key}"
        problem = f"{full} differs from block to block" if value else f"{full} is missing"
        raise CheckpointError(
            f"{self.path.name}: {problem}",
            hint="edgepack reads models whose blocks are all alike, as llama.cpp converts them",
        )

    def _same(self, key: str, head_dim: int) -> None:
        if self._number(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{self.path.name}: {self.architecture.gguf}.{key} is {self._number(key)}, "
                f"the keys' length {head_dim}",
                hint="heads whose values or rotary part differ in size are not supported",
            )


def _decimal(value: float) -> float:
    """The shortest decimal number that rounds to the same float32: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))
