"""An ONNX output folder read back as a checkpoint: Q of every weight, and its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES, NORMS, Architecture
from edgepack.checkpoint import _layout
from edgepack.checkpoint.base import Checkpoint, reopened
from edgepack.checkpoint.config import read
from edgepack.checkpoint.folder import FolderCheckpoint
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core import plugins
from edgepack.core.untrusted import shorten
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat, WeightSpec
from edgepack.errors import CheckpointError
from edgepack.export import _onnx_pack as pack
from edgepack.export import _onnx_unpack as unpack
from edgepack.export import onnx_metadata
from edgepack.export._onnx_attention import ROLES
from edgepack.export._onnx_initializers import Initializers
from edgepack.export._onnx_store import LORA
from edgepack.export.values import F32
from edgepack.runtimes import onnx_check

FACTORS_FILE = "factors.safetensors"
AGAIN = onnx_check.AGAIN


class OnnxCheckpoint(FolderCheckpoint):
    """A folder as written by `export.onnx`, with the names and shapes of Hugging Face.

    `tensor` gives Q without factors, as the graph computes with it. Values are read one initializer
    at a time. Raises `CheckpointError` for graphs of others and of versions without metadata.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.revision = folder, str(folder), None
        self.place = shorten(folder.resolve().name, 80)
        self._files = SourceFiles()
        path = onnx_check.model_file(folder)
        self._stored = Initializers(path, onnx_check.data_files(path), self._files, self.place)
        about = onnx_metadata.read(self._stored.metadata, self.place)
        config = {**self._read_config(), "hidden_size": about.hidden_size}
        for key in ("architectures", "auto_map"):  # config.json names classes of other families
            config.pop(key, None)
        family, self._config, self.dimensions = read(config, self.place)
        self._check_roles(family, about)
        self.architecture = replace(family, block=about.block, optional={}, outside=about.outside)
        self._formats = {name: matrix.formats for name, matrix in about.matrices.items()}
        self._check_formats()
        factors = folder / FACTORS_FILE
        self._given = factors if factors.is_file() else None
        self._weights = [path, *self._stored.files, *([factors] if self._given else [])]
        self.specs = self._match(about)
        self._read_files = self._list_files()
        self._files.check(self._read_files)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the place that it is opened from."""
        return reopened, (OnnxCheckpoint, (self.folder.resolve(),), self.key)

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        return {"model": self.place, "kind": "onnx", "files": self._digests}

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        """The formats of every matrix."""
        return self._formats

    def warnings(self) -> tuple[str, ...]:  # noqa: D102
        return ()

    def stored(self, name: str) -> tuple[Tensor, str]:  # noqa: D102
        return Checkpoint.stored(self, name)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        if name not in self._formats:
            return self._vector(name)
        Q = self._part(name, "Q")
        return Q.dequantize()

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        known = self._formats.get(name)
        return None if known is None or known.Q == F32 else self._part(name, "Q")

    def factors(self, name: str) -> tuple[QuantizedTensor, QuantizedTensor] | None:
        """L ``[out, rank]`` and R ``[rank, in]`` of a matrix; None if it has none."""
        known = self._formats.get(name)
        if known is None or not known.rank:
            return None
        return self._part(name, "L"), self._part(name, "R")

    def weight(self, name: str) -> FactoredWeight:
        """Q, L and R of a matrix."""
        return FactoredWeight(self._part(name, "Q"), *(self.factors(name) or (None, None)))

    # ------------------------------------------------------------------ headers

    def _check_roles(self, family: Architecture, about: onnx_metadata.Metadata) -> None:
        """Refuse metadata without a part that every model of the family has. (Biases of norms are
        folded away before a model is sliced.)"""
        wanted = {role for role in family.block if not role.endswith(".bias")} - set(about.block)
        wanted |= {"token_embd", "output_norm", "output"} - set(about.outside)
        if wanted:
            raise CheckpointError(
                f"{self.place}: metadata: {min(wanted)} is missing", hint=onnx_metadata.AGAIN
            )

    def _check_formats(self) -> None:
        """Refuse formats that are not installed, or that a graph cannot hold."""
        known, values = plugins.names("formats"), self._formats.values()
        for fmt in {part for value in values for part in (value.Q, value.L, value.R) if part}:
            if fmt == F32 or fmt in pack.WHOLE_ROWS:
                continue
            if fmt not in known or pack.layout_of(fmt) is None:
                raise CheckpointError(
                    f"{self.place}: the format {shorten(fmt, 40)!r} is not known",
                    hint="install the package that it comes from, or build the folder again",
                )
        if any(bool(v.rank) != bool(v.L and v.R) for v in values):
            raise CheckpointError(f"{self.place}: a rank without factors", hint=AGAIN)

    def _match(self, about: onnx_metadata.Metadata) -> dict[str, WeightSpec]:
        """The specs, from the shapes in the metadata and those of stored vectors."""
        family = self.architecture
        inside = [family.hf_name(role, block) for block in self._blocks() for role in about.block]
        names = {*inside, *family.outside.values()} - set(about.matrices)
        info, stored = _layout.TensorInfo, self._stored.tensors
        found = {n: info(tuple(m.shape), m.Q.upper()) for n, m in about.matrices.items()}
        found |= {name: info(t.shape, t.dtype) for name, t in stored.items() if name in names}
        sliced = any(role in about.block for role in onnx_metadata.SHORTCUTS)
        specs, _ = _layout.match(
            self.place, family, self.dimensions, found, family.hf_name, sliced=sliced
        )
        return specs

    def _blocks(self) -> range:
        """Numbers of the blocks; no more than tensors, which the configuration may deny."""
        return range(min(self.dimensions.num_hidden_layers, len(self._stored.tensors)))

    # ------------------------------------------------------------------ values

    def _vector(self, name: str) -> Tensor:
        """A norm's gains or a bias. In a model sliced per block the exporter has multiplied gains
        by √(hidden size / width); that is undone."""
        spec = self.specs[name]
        value = self._stored.read(name, spec.shape, ("F32", "F16")).float()
        of, width = self.dimensions.hidden_size, spec.shape[0]
        biased = f"{spec.role}.bias" in {**self.architecture.block, **self.architecture.outside}
        if spec.role in NORMS and not biased and of != width:
            return value / float((of / width) ** 0.5)
        return value

    def _part(self, name: str, part: str) -> QuantizedTensor:
        """Q, L or R of a matrix."""
        known, (rows, columns) = self._formats[name], self.specs[name].shape
        fmt = {"Q": known.Q, "L": known.L, "R": known.R}[part] or ""
        shape = {"Q": (rows, columns), "L": (rows, known.rank), "R": (known.rank, columns)}[part]
        layout = pack.layout_of(fmt)
        if layout is None and fmt != "int8":
            return QuantizedTensor(fmt, self._plain(name, part, fmt, shape), {})
        label, start, total = self._label(name, part)
        joined = self._quantized(label, fmt, layout, (total, shape[1]))
        if total == shape[0]:
            return joined
        return joined.permute_rows(torch.arange(start, start + shape[0]))

    def _plain(self, name: str, part: str, fmt: str, shape: tuple[int, ...]) -> Tensor:
        """An unquantized matrix; tables are stored as they are, other matrices transposed."""
        if part == "Q":
            turned = self.specs[name].role in (*LINEAR_ROLES, "output")
            wanted = shape[::-1] if turned else shape
            value = self._stored.read(name, wanted, ("F32" if fmt == F32 else "F16",))
            return value.T.contiguous() if turned else value
        key = f"{name.removesuffix('.weight')}.{LORA[part]}"
        if key in self._stored.tensors:
            return self._stored.read(key, shape[::-1], ("F16",)).T.contiguous()
        return self._input(key, shape[::-1]).T.contiguous()

    def _input(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """A factor that is an input of the graph, from the file of factors."""
        if self._given is None:
            raise CheckpointError(
                f"{self.place}: {FACTORS_FILE} is missing, and the graph takes its factors from it",
                hint=AGAIN,
            )
        self._files.check([self._given])
        try:
            with safe_open(self._given, framework="pt") as file:
                value: Tensor = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.place}: cannot read {FACTORS_FILE}: {onnx_check.reason(error)}", hint=AGAIN
            ) from error
        if value.dtype != torch.float16 or tuple(value.shape) != shape:
            raise CheckpointError(
                f"{self.place}: {shorten(key, 80)} is {value.dtype} {list(value.shape)}, not "
                f"float16 {list(shape)}",
                hint="the file of factors belongs to another folder",
            )
        return value

    def _label(self, name: str, part: str) -> tuple[str, int, int]:
        """The name of the stored tensors of a part; the part's first row in them, and their rows.
        The exporter joins queries, keys and values of the same format."""
        spec, own = self.specs[name], f"{name.removesuffix('.weight')}.{part}"
        alone = own, 0, self._formats[name].rank if part == "R" else spec.shape[0]
        if spec.role not in ROLES:
            return alone
        joined = [self.architecture.hf_name(role, spec.block) for role in ROLES]
        label = f"{joined[0].removesuffix('.weight')}.{part}+"
        if not self._stored.has_label(label):
            return alone
        rows = [self.specs[each].shape[0] for each in joined]
        return label, sum(rows[: joined.index(name)]), sum(rows)

    def _quantized(
        self, label: str, fmt: str, layout: pack.Layout | None, shape: tuple[int, int]
    ) -> QuantizedTensor:
        rows, columns = shape
        read = self._stored.read
        if layout is None:
            codes = read(f"{label}.codes", (columns, rows), ("U8",))
            return unpack.whole_rows(fmt, codes, read(f"{label}.scales", (rows,), ("F16",)))
        count = columns // layout.size
        turned = layout.bits != 3 and len(self._stored.shape(f"{label}.codes")) == 2
        wanted = (count, rows) if turned else (rows, count)
        scales = read(f"{label}.scales", wanted, ("F16",))
        if turned:
            types = ("U4", "I4") if layout.bits == 4 else ("U8", "I8")
            zeros = read(f"{label}.zeros", wanted, types) if layout.zeros else None
            codes = read(f"{label}.codes", (columns, rows), types)
            return unpack.columns(fmt, layout, codes, scales, zeros)
        width = -(-count * layout.computed // 8)
        zeros = read(f"{label}.zeros", (rows, width), ("U8",)) if layout.zeros else None
        if layout.bits == 3:
            low, high = (
                read(f"{label}.codes_{which}", (rows, count, layout.size * bits // 8), ("U8",))
                for which, bits in (("low", 2), ("high", 1))
            )
            return unpack.planes(fmt, layout, low, high, scales, zeros)
        packed = (rows, count, layout.size * layout.bits // 8)
        return unpack.blocks(fmt, layout, read(f"{label}.codes", packed, ("U8",)), scales, zeros)
