"""A GGUF file as a checkpoint, with Hugging Face's names, shapes and row order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import (
    _layout,
    digests,
    gguf_dimensions,
    gguf_experts,
    gguf_mixers,
    gguf_sized_kinds,
    rope,
    rounded,
    special,
    tokenizer,
)
from edgepack.checkpoint.base import Checkpoint, Dimensions, reopened
from edgepack.checkpoint.config import check_heads
from edgepack.checkpoint.gguf_keys import (
    Numbers,
    decimal,
    read_general,
    read_numbers,
    read_tokenizer,
)
from edgepack.checkpoint.gguf_parts import GgufParts
from edgepack.checkpoint.source_files import Known, SourceFiles
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

DIVISORS = (rope.TENSOR, *rope.LONGROPE)
"""Tensors of divisors of rotary frequencies."""

NOT_IN_GGUF = ("Q1_0", "Q2_0")
"""Stock types that the gguf package cannot decode; edgepack can."""
FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class GgufCheckpoint(Checkpoint):
    """A ``.gguf`` file, or the parts of a split one."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self.place = shorten(path.name, 80)
        self._files = SourceFiles()
        self._header = GgufParts(path, self._files)
        self._fields = {key: value for key, (value, *_) in self._header.metadata.items()}
        self.architecture = self._architecture()
        fields = gguf_sized_kinds.uniform(self._fields, self.architecture)
        self._numbers = read_numbers(fields, self.architecture.gguf, self.place)
        self._tokens = read_tokenizer(self._fields, self.place).tokens or []
        self.dimensions = self._dimensions()
        shapes = {n: s.shape for n, s in self._header.tensors.items() if n not in DIVISORS}
        parts = gguf_experts.parts(shapes, self.architecture, self.dimensions)
        found = {name: self._info(place) for name, place in parts.items()}
        self.specs, names = _layout.match(
            self.place, self.architecture, self.dimensions, found, self.architecture.gguf_name
        )
        self._stored = {name: parts[stored] for name, stored in names.items()}
        for name in shapes:
            self._refuse_unreadable(name)

    def _info(self, place: gguf_experts.Part) -> _layout.TensorInfo:
        stored = self._header.tensors[place.tensor]
        shape = stored.shape if place.expert is None else stored.shape[1:]
        return _layout.TensorInfo(shape, stored.kind.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the place that it is opened from."""
        arguments = self.path.resolve(), self.model
        return reopened, (GgufCheckpoint, arguments, self.key, self._files.known())

    def file_digests(self) -> Mapping[str, str]:  # noqa: D102
        return self._digests

    def trust(self, known: tuple[Known, ...]) -> None:  # noqa: D102
        self._files.trust(known)

    @cached_property
    def _digests(self) -> dict[str, str]:
        """sha256 of each file, by name."""
        return {path.name: self._files.sha256(path) for path in self._header.paths}

    @property
    def key(self) -> str:  # noqa: D102
        return digests.combine({"gguf": " ".join(self._digests.values())})

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        published = self.model if self.model.startswith("package:") else self.path.name
        return {"model": published, "kind": "gguf", "files": self._digests}

    def warnings(self) -> tuple[str, ...]:  # noqa: D102
        return rounded.warning(self.specs.values(), self.place)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        values = self._values(self._stored[name]).reshape(self.specs[name].shape)
        order = self._hf_rows(name)
        return values if order is None else values[order]

    def stored(self, name: str) -> tuple[Tensor, str]:  # noqa: D102
        kind, shape, data = self._bytes(self._stored[name])
        if kind in FLOATS:
            return data.view(FLOATS[kind]).reshape(shape), kind.name
        return data.reshape(*shape[:-1], -1), kind.name

    def stored_rows(self, name: str, rows: range) -> tuple[Tensor, str]:
        """Some rows of `stored`; nothing else of the file is read."""
        place = self._stored[name]
        kind = self._header.tensors[place.tensor].kind
        if place.expert is not None:
            data, name_of_kind = self.stored(name)
            return data[rows.start : rows.stop : rows.step], name_of_kind
        data = self._header.bytes_of_rows(place.tensor, rows)
        return data.view(FLOATS[kind]) if kind in FLOATS else data, kind.name

    def rows(self, name: str, rows: Tensor) -> Tensor:  # noqa: D102
        if self._hf_rows(name) is not None:
            return super().rows(name, rows)
        stored = self._header.tensors[self._stored[name].tensor]
        found = [self.stored_rows(name, range(i, i + 1))[0] for i in rows.tolist()]
        together = torch.stack([row.reshape(-1) for row in found])
        return together.float() if stored.kind in FLOATS else _decode(together, stored.kind)

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        spec = self.specs[name]
        format_name = spec.dtype.lower()
        if not spec.is_matrix or format_name not in plugins.names("formats"):
            return None
        _, _, data = self._bytes(self._stored[name])
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
        part = gguf_experts.Part
        return {name: self._values(part(name)) for name in DIVISORS if name in self._header.tensors}

    def _bytes(
        self, place: gguf_experts.Part
    ) -> tuple[GGMLQuantizationType, tuple[int, ...], Tensor]:
        """Type, shape and bytes of a stored tensor, or of one expert's part of it."""
        stored = self._header.tensors[place.tensor]
        if place.expert is None:
            return stored.kind, stored.shape, self._header.bytes_of(place.tensor)
        data = self._header.bytes_of_rows(place.tensor, range(place.expert, place.expert + 1))
        return stored.kind, stored.shape[1:], data.flatten()

    def _values(self, place: gguf_experts.Part) -> Tensor:
        """A stored tensor as float32, with rows in the file's order."""
        kind, shape, data = self._bytes(place)
        if kind in FLOATS:
            return data.view(FLOATS[kind]).reshape(shape).to(torch.float32)
        return _decode(data.reshape(*shape[:-1], -1), kind).reshape(shape)

    def _hf_rows(self, name: str) -> Tensor | None:
        """The stored row of each of Hugging Face's rows; None if the orders agree."""
        order = _layout.gguf_rows(self.architecture, self.dimensions, self.specs[name].role)
        return None if order is None else torch.argsort(order)

    def _refuse_unreadable(self, name: str) -> None:
        kind = self._header.tensors[name].kind
        if kind in FLOATS:
            return
        try:
            _decode(torch.zeros(1, GGML_QUANT_SIZES[kind][1], dtype=torch.uint8), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.place}: {shorten(name, 60)} is stored as {kind.name}, which cannot be read",
                hint="start from a file with a common type such as Q8_0, Q4_K, F16 or BF16",
            ) from error

    def _architecture(self) -> Architecture:
        general = read_general(self._fields, self.place)
        families: dict[str, list[Architecture]] = {}
        for family in plugins.names("architectures"):  # sorted: llama is tried before mistral
            architecture: Architecture = plugins.find("architectures", family)
            if architecture.gguf:
                families.setdefault(architecture.gguf, []).append(architecture)
        if general.architecture not in families:
            raise CheckpointError(
                f"{self.place}: architecture {quote(general.architecture)} is not supported",
                hint="supported: " + ", ".join(families),
            )
        windowed = f"{general.architecture}.attention.sliding_window" in self._fields
        found = families[general.architecture]
        return next((family for family in found if family.mixed == windowed), found[0])

    def _dimensions(self) -> Dimensions:
        numbers, family = self._numbers, self.architecture
        heads, hidden = numbers.head_count, numbers.embedding_length
        head_dim = numbers.key_length or hidden // heads
        self._check_head(numbers, head_dim)
        theta, vocab = decimal(numbers.freq_base), len(self._tokens) or numbers.vocab_size
        if vocab is None:
            raise CheckpointError(
                f"{self.place}: no tokenizer.ggml.tokens and no {family.gguf}.vocab_size",
                hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
            )
        blocks = numbers.block_count
        if family.kind_roles and not family.sized_kinds:
            kinds = gguf_mixers.read(self._fields, family, blocks, self.place)
        else:
            types, own = gguf_dimensions.read_kinds(family, numbers, theta, self.place)
            kinds = {"layer_types": types, "kinds": own}
        turning = numbers.dimension_count or head_dim
        scaling = rope.from_gguf(
            numbers.scaling_type,
            numbers.scaling,
            self._divisors(turning),
            theta,
            turning,
            self.place,
        )
        dimensions = Dimensions(
            num_hidden_layers=blocks,
            hidden_size=hidden,
            intermediate_size=numbers.feed_forward_length,
            num_attention_heads=heads,
            num_key_value_heads=numbers.head_count_kv or heads,
            head_dim=head_dim,
            vocab_size=vocab,
            max_position_embeddings=numbers.context_length,
            rms_norm_eps=decimal(numbers.epsilon),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=(numbers.sliding_window or None) if family.mixed else None,
            tie_word_embeddings="output.weight" not in self._header.tensors,
            partial_rotary_factor=turning / head_dim,
            **gguf_dimensions.read_numbers(family, numbers, head_dim, self.place),
            **gguf_experts.read(family, numbers, self.place),
            **kinds,
            **family.fixed,
        )
        if family.sized_kinds:
            dimensions = gguf_sized_kinds.read(
                dimensions, self._fields, self._header.tensors, family, self.place
            )
        check_heads(dimensions, family, self.place)
        return dimensions

    def _check_head(self, numbers: Numbers, head_dim: int) -> None:
        if head_dim < 1:
            raise CheckpointError(
                f"{self.place}: {numbers.head_count} attention heads for "
                f"{numbers.embedding_length} columns, and no attention.key_length",
                hint="the keys are damaged, or of another model",
            )
        turning = None if self.architecture.partial_rotary else numbers.dimension_count
        for key, value in (
            ("attention.value_length", numbers.value_length),
            ("rope.dimension_count", turning),
        ):
            if value not in (None, head_dim):
                raise CheckpointError(
                    f"{self.place}: {self.architecture.gguf}.{key} is {value}, "
                    f"the keys' length {head_dim}",
                    hint="heads whose values or rotary part differ in size are not supported",
                )

    def _divisors(self, turning: int) -> dict[str, Tensor]:
        """The divisors of rotary frequencies that the file has, by name."""
        found = {n: self._header.tensors[n] for n in DIVISORS if n in self._header.tensors}
        for name, stored in found.items():
            if stored.kind != GGMLQuantizationType.F32 or stored.shape != (turning // 2,):
                raise CheckpointError(
                    f"{self.place}: {name} is {stored.kind.name} {list(stored.shape)}, not F32 "
                    f"[{turning // 2}]",
                    hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
                )
        return {name: self._values(gguf_experts.Part(name)) for name in found}


def _decode(data: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """Bytes ``[…, bytes of a row]`` as float32; NotImplementedError for types that hold none."""
    if kind.name not in NOT_IN_GGUF:
        values = dequantize(data.numpy(), kind)
        return torch.from_numpy(values).clone()  # in torch's alignment
    rows = data.reshape(-1, data.shape[-1])
    parsed: QuantizedTensor = plugins.find("formats", kind.name.lower()).parse(rows)
    return parsed.dequantize()
