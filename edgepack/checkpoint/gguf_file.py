"""A GGUF file as a checkpoint, with Hugging Face's names, shapes and row order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import _layout, digests, gguf_mixers, rope, special, tokenizer
from edgepack.checkpoint.base import Checkpoint, Dimensions, reopened
from edgepack.checkpoint.config import check_heads
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.checkpoint.gguf_keys import Numbers, read_general, read_numbers, read_tokenizer
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core import plugins
from edgepack.core.untrusted import quote, shorten
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import CheckpointError
from edgepack.formats._ggml import GGML_QUANT_SIZES, GGMLQuantizationType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PASSED_OVER = ("split.", "quantize.")
"""Prefixes of keys about this file's quantization and splitting …"""
DROPPED = {"general.file_type", "general.quantization_version", "general.alignment"}
"""… and other such keys."""

FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class GgufCheckpoint(Checkpoint):
    """One ``.gguf`` file, mapped into memory."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self.place = shorten(path.name, 80)
        self._files = SourceFiles()
        self._header = GgufHeader(path, self._files)
        self._fields = {key: value for key, (value, *_) in self._header.metadata.items()}
        self.architecture = self._architecture()
        self._numbers = read_numbers(self._fields, self.architecture.gguf, self.place)
        self._tokens = read_tokenizer(self._fields, self.place).tokens or []
        self.dimensions = self._dimensions()
        found = {
            name: _layout.TensorInfo(stored.shape, stored.kind.name)
            for name, stored in self._header.tensors.items()
            if name != rope.TENSOR
        }
        self.specs, self._stored = _layout.match(
            self.place, self.architecture, self.dimensions, found, self.architecture.gguf_name
        )
        for name in found:
            self._refuse_unreadable(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the place that it is opened from."""
        return reopened, (GgufCheckpoint, (self.path.resolve(), self.model), self.key)

    @cached_property
    def _sha256(self) -> str:
        return self._files.sha256(self.path)

    @property
    def key(self) -> str:  # noqa: D102
        return digests.combine({"gguf": self._sha256})

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        published = self.model if self.model.startswith("package:") else self.path.name
        return {"model": published, "kind": "gguf", "files": {self.path.name: self._sha256}}

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        values = self._values(self._stored[name]).reshape(self.specs[name].shape)
        order = self._hf_rows(name)
        return values if order is None else values[order]

    def stored(self, name: str) -> tuple[Tensor, str]:  # noqa: D102
        stored = self._header.tensors[self._stored[name]]
        data = self._header.bytes_of(self._stored[name])
        if stored.kind in FLOATS:
            return data.view(FLOATS[stored.kind]).reshape(stored.shape), stored.kind.name
        return data.reshape(*stored.shape[:-1], -1), stored.kind.name

    def stored_rows(self, name: str, rows: range) -> tuple[Tensor, str]:
        """Some rows of `stored`; nothing else of the file is read."""
        kind = self._header.tensors[self._stored[name]].kind
        data = self._header.bytes_of_rows(self._stored[name], rows)
        return data.view(FLOATS[kind]) if kind in FLOATS else data, kind.name

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        spec = self.specs[name]
        format_name = spec.dtype.lower()
        if len(spec.shape) != 2 or format_name not in plugins.names("formats"):
            return None
        data = self._header.bytes_of(self._stored[name])
        data, order = data.reshape(spec.shape[0], -1), self._hf_rows(name)
        parsed: QuantizedTensor = plugins.find("formats", format_name).parse(
            data if order is None else data[order]
        )
        return parsed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # noqa: D102
        return tokenizer.from_gguf(self._fields, self.place)

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
        """A stored tensor as float32, with rows in the file's order."""
        stored, data = self._header.tensors[stored_name], self._header.bytes_of(stored_name)
        if stored.kind in FLOATS:
            return data.view(FLOATS[stored.kind]).reshape(stored.shape).to(torch.float32)
        values = dequantize(data.reshape(*stored.shape[:-1], -1).numpy(), stored.kind)
        return torch.from_numpy(values.reshape(stored.shape)).clone()  # in torch's alignment

    def _hf_rows(self, name: str) -> Tensor | None:
        """The stored row of each of Hugging Face's rows; None if the orders agree."""
        order = _layout.gguf_rows(self.architecture, self.dimensions, self.specs[name].role)
        return None if order is None else torch.argsort(order)

    def _refuse_unreadable(self, name: str) -> None:
        kind = self._header.tensors[name].kind
        if kind in FLOATS:
            return
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.place}: {shorten(name, 60)} is stored as {kind.name}, which cannot be read",
                hint="start from a file with a common type such as Q8_0, Q4_K, F16 or BF16",
            ) from error

    def _architecture(self) -> Architecture:
        general = read_general(self._fields, self.place)
        families: dict[str, Architecture] = {}
        for family in plugins.names("architectures"):  # sorted: llama is tried before mistral
            architecture: Architecture = plugins.find("architectures", family)
            if architecture.gguf:
                families.setdefault(architecture.gguf, architecture)
        if general.architecture not in families:
            raise CheckpointError(
                f"{self.place}: architecture {quote(general.architecture)} is not supported",
                hint="supported: " + ", ".join(families),
            )
        if general.split_count > 1:
            raise CheckpointError(
                f"{self.place}: one part of a split model",
                hint="join the parts with llama.cpp's llama-gguf-split --merge",
            )
        return families[general.architecture]

    def _dimensions(self) -> Dimensions:
        numbers, family = self._numbers, self.architecture
        heads, hidden = numbers.head_count, numbers.embedding_length
        head_dim = numbers.key_length or hidden // heads
        self._check_head(numbers, head_dim)
        theta, vocab = _decimal(numbers.freq_base), len(self._tokens) or numbers.vocab_size
        if vocab is None:
            raise CheckpointError(
                f"{self.place}: no tokenizer.ggml.tokens and no {family.gguf}.vocab_size",
                hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
            )
        dimensions = Dimensions(
            num_hidden_layers=numbers.block_count,
            hidden_size=hidden,
            intermediate_size=numbers.feed_forward_length,
            num_attention_heads=heads,
            num_key_value_heads=numbers.head_count_kv or heads,
            head_dim=head_dim,
            vocab_size=vocab,
            max_position_embeddings=numbers.context_length,
            rms_norm_eps=_decimal(numbers.epsilon),
            rope_theta=theta,
            rope_scaling=rope.from_gguf(
                numbers.scaling_type,
                numbers.rope_factor,
                self._divisors(head_dim),
                theta,
                head_dim,
                self.place,
            ),
            sliding_window=None,
            partial_rotary_factor=(numbers.dimension_count or head_dim) / head_dim,
            tie_word_embeddings="output.weight" not in self._header.tensors,
            **gguf_mixers.read(self._fields, family, numbers.block_count, self.place),
        )
        check_heads(dimensions, family, self.place)
        return dimensions

    def _check_head(self, numbers: Numbers, head_dim: int) -> None:
        for key, value in (
            ("attention.value_length", numbers.value_length),
            ("rope.dimension_count", numbers.dimension_count),
        ):
            partial = self.architecture.partial_rotary and key.startswith("rope.")
            if value not in (None, head_dim) and not partial:
                raise CheckpointError(
                    f"{self.place}: {self.architecture.gguf}.{key} is {value}, "
                    f"the keys' length {head_dim}",
                    hint="heads whose values or rotary part differ in size are not supported",
                )

    def _divisors(self, head_dim: int) -> Tensor | None:
        """The divisors of rotary frequencies, if the file has any."""
        stored = self._header.tensors.get(rope.TENSOR)
        if stored is None:
            return None
        if stored.kind != GGMLQuantizationType.F32 or stored.shape != (head_dim // 2,):
            raise CheckpointError(
                f"{self.place}: {rope.TENSOR} is {stored.kind.name} {list(stored.shape)}, not F32 "
                f"[{head_dim // 2}]",
                hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
            )
        return self._values(rope.TENSOR)


def _decimal(value: float) -> float:
    """The shortest decimal number that rounds to the same float32: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))
