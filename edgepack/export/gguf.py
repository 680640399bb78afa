"""Contents and sizes of a GGUF model and of an adapter for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from gguf import GGUFValueType
from torch import Tensor

from edgepack.checkpoint import Checkpoint, gguf_rows, gguf_shape
from edgepack.core import plugins
from edgepack.core.weights import QuantizedTensor, WeightFormat, WeightSpec
from edgepack.errors import ExportError
from edgepack.export._gguf_stacks import in_stacks, one_format, reading
from edgepack.export._gguf_writer import Entry, size_of, write
from edgepack.export.values import F32, plain_formats
from edgepack.formats import f16
from edgepack.formats.base import GgmlFormat

FILE_TYPES = {
    0: 0,  # F32
    1: 1,  # F16
    2: 2,  # Q4_0
    3: 3,  # Q4_1
    6: 8,  # Q5_0
    7: 9,  # Q5_1
    8: 7,  # Q8_0
    10: 10,  # Q2_K
    11: 11,  # Q3_K → Q3_K_S
    12: 14,  # Q4_K → Q4_K_S
    13: 16,  # Q5_K → Q5_K_S
    14: 18,  # Q6_K
    16: 19,  # IQ2_XXS
    17: 20,  # IQ2_XS
    18: 23,  # IQ3_XXS
    20: 25,  # IQ4_NL
    21: 26,  # IQ3_S
    22: 28,  # IQ2_S
    23: 30,  # IQ4_XS
    30: 32,  # BF16
    40: 39,  # NVFP4
    42: 41,  # Q2_0
    43: 42,  # IQ2_NL, as proposed
    44: 43,  # IQ3_NL, as proposed
}
"""``enum ggml_type`` → ``enum llama_ftype``, which llama.cpp prints as the kind of the file."""


class Factors(Protocol):
    """L and R of a weight."""

    @property
    def L(self) -> QuantizedTensor | None:  # noqa: N802
        """``[out, rank]``."""
        ...

    @property
    def R(self) -> QuantizedTensor | None:  # noqa: N802
        """``[rank, in]``."""
        ...


def write_model(
    path: Path,
    checkpoint: Checkpoint,
    formats: Mapping[str, str],
    load: Callable[[str], QuantizedTensor | Tensor],
    norms: Mapping[str, Tensor] | None = None,
) -> int:
    """Write a model and return its size in bytes.

    `formats` gives the format of every matrix by Hugging Face name, or ``f32``. Norms and biases
    are float32, as llama.cpp requires; `norms` replaces some of the checkpoint's. `load(name)` is
    called once per matrix in file order. It returns the codes (for ``f32`` the values) or, as a
    uint8 tensor ``[out, bytes]``, the GGUF bytes; rows are in Hugging Face's order.
    """
    entries = _model_entries(checkpoint, formats, load, norms)
    return write(path, checkpoint.architecture, _model_metadata(checkpoint, formats), entries)


def _model_metadata(
    checkpoint: Checkpoint, formats: Mapping[str, str]
) -> dict[str, tuple[Any, Any, Any]]:
    metadata = dict(checkpoint.gguf_metadata())
    metadata["general.file_type"] = _uint32(_file_type(formats))
    metadata["general.quantization_version"] = _uint32(2)
    return metadata


def _model_entries(
    checkpoint: Checkpoint,
    formats: Mapping[str, str],
    load: Callable[[str], QuantizedTensor | Tensor],
    norms: Mapping[str, Tensor] | None = None,
) -> list[Entry]:
    matrices = [spec for spec in checkpoint.specs.values() if spec.is_matrix]
    if missing := [spec.name for spec in matrices if spec.name not in formats]:
        raise ValueError(f"no format for {missing}")
    entries: list[Entry] = []
    for several in in_stacks(sorted(checkpoint.specs.values(), key=_position)):
        spec, count = several[0], () if several[0].expert is None else (len(several),)
        name = checkpoint.architecture.gguf_name(spec.role, spec.block)
        rows = gguf_rows(checkpoint.architecture, checkpoint.dimensions, spec.role)
        if spec.is_matrix:
            wanted = one_format(several, formats)
            fmt = None if wanted == F32 else _format(wanted, spec.shape, spec.name)
            entries.append(Entry(name, count + spec.shape, reading(several, load, fmt), fmt, rows))
        else:
            source = norms.__getitem__ if norms and spec.name in norms else checkpoint.tensor
            read = reading(several, source, None)
            entries.append(Entry(name, count + gguf_shape(spec), read, None, rows))
    for name, value in checkpoint.extra_tensors().items():
        entries.append(Entry(name, tuple(value.shape), partial(Tensor.float, value)))
    return entries


def write_plain(path: Path, checkpoint: Checkpoint, fmt: str = "f16") -> int:
    """Write the model with every matrix rounded to `fmt` (default: the f16 reference, in which
    matrices that float16 does not hold are float32)."""
    plugin: GgmlFormat = plugins.find("formats", fmt)
    formats = {s.name: fmt for s in checkpoint.specs.values() if s.is_matrix}
    if fmt == f16.PLUGIN.name:
        formats = plain_formats(checkpoint)

    def load(name: str) -> QuantizedTensor | Tensor:
        W = checkpoint.tensor(name)
        return W if formats[name] == F32 else plugin.quantize(W)

    return write_model(path, checkpoint, formats, load)


def write_factors(
    path: Path,
    checkpoint: Checkpoint,
    factors: Mapping[str, WeightFormat],
    load: Callable[[str], Factors],
    about: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write L and R as a LoRA adapter (lora_b, lora_a) for a base of Q; return its size in bytes.

    `factors` are the weights with factors; their formats may be ``f32``. alpha is 0, so that
    llama.cpp scales L·R by 1 instead of alpha/rank (``get_scale`` in llama-adapter.h), and ranks
    may differ. `about` are further texts for the metadata.
    """
    load = lru_cache(maxsize=1)(load)  # L is written directly after R
    entries = _factor_entries(checkpoint, factors, load)
    metadata = _factor_metadata(checkpoint)
    metadata |= {key: (text, GGUFValueType.STRING, None) for key, text in about.items()}
    return write(path, checkpoint.architecture, metadata, entries)


def files_size(
    checkpoint: Checkpoint, formats: Mapping[str, str], factors: Mapping[str, WeightFormat]
) -> int:
    """Bytes that `write_model` and `write_factors` (if there are factors) write together."""

    def unread(name: str) -> Any:
        raise AssertionError(f"{name}: sizes need no values")

    metadata = _model_metadata(checkpoint, formats)
    entries = _model_entries(checkpoint, formats, unread)
    size = size_of(checkpoint.architecture, metadata, entries)
    if factors:
        entries = _factor_entries(checkpoint, factors, unread)
        size += size_of(checkpoint.architecture, _factor_metadata(checkpoint), entries)
    return size


def _factor_entries(
    checkpoint: Checkpoint,
    factors: Mapping[str, WeightFormat],
    load: Callable[[str], Factors],
) -> list[Entry]:
    entries: list[Entry] = []
    specs = sorted((checkpoint.specs[name] for name in factors), key=_position)
    for several in in_stacks(specs):
        spec, count = several[0], () if several[0].expert is None else (len(several),)
        if spec.role in (
            "token_embd",
            "per_layer_token_embd",
        ):  # it is stored transposed, and a tied head could not use it
            raise ExportError(f"{spec.name}: llama.cpp has no place for factors of the embedding")
        known = one_format(several, factors)
        rows = gguf_rows(checkpoint.architecture, checkpoint.dimensions, spec.role)
        name = checkpoint.architecture.gguf_name(spec.role, spec.block)
        parts = (
            ("R", (known.rank, spec.shape[1]), "lora_a", None),
            ("L", (spec.shape[0], known.rank), "lora_b", rows),
        )
        for part, shape, suffix, order in parts:
            wanted = getattr(known, part)
            fmt = None if wanted == F32 else _format(wanted, shape, spec.name)
            read = reading(several, partial(_part, load, part), fmt)
            entries.append(Entry(f"{name}.{suffix}", count + shape, read, fmt, order))
    return entries


def _factor_metadata(checkpoint: Checkpoint) -> dict[str, tuple[Any, Any, Any]]:
    metadata: dict[str, tuple[Any, Any, Any]] = {
        "general.type": ("adapter", GGUFValueType.STRING, None),
        "adapter.type": ("lora", GGUFValueType.STRING, None),
        "adapter.lora.alpha": (0.0, GGUFValueType.FLOAT32, None),
        "general.quantization_version": _uint32(2),
    }
    if name_of_base := checkpoint.gguf_metadata().get("general.name"):
        metadata["general.name"] = name_of_base
    return metadata


def _position(spec: WeightSpec) -> tuple[int, int]:
    """Sort key: embedding, blocks in order, output norm, head; blocks keep the source's order."""
    outside = {"output_norm": 2, "output": 3}
    return (1, spec.block) if spec.block is not None else (outside.get(spec.role, 0), 0)


def _format(name: str, shape: tuple[int, ...], weight: str) -> GgmlFormat:
    fmt: GgmlFormat = plugins.find("formats", name)
    if not fmt.fits(shape[-1]):
        raise ExportError(f"{weight}: rows of {shape[-1]} do not fit blocks of {name}")
    return fmt


def _part(load: Callable[[str], Factors], part: str, name: str) -> QuantizedTensor | Tensor:
    found: QuantizedTensor = getattr(load(name), part)
    return found.codes if found.format == F32 else found


def _uint32(value: int) -> tuple[Any, Any, Any]:
    return value, GGUFValueType.UINT32, None


def _file_type(formats: Mapping[str, str]) -> int:
    """The kind of most matrices, or ALL_F32 if it has no number."""
    most = Counter(formats.values()).most_common(1)[0][0]
    return 0 if most == F32 else FILE_TYPES.get(plugins.find("formats", most).ggml_type, 0)
