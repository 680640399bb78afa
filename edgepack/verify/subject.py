"""The folder that is looked at, and what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.adapters.base import GGUF, ONNX, PackedBase
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core.adapters import FOLDER, weight_files
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.weights import WeightFormat
from edgepack.publish.folder import Described, describe

ADAPTER = "adapter"
"""What a folder is that holds an adapter and no model."""


@dataclass(frozen=True)
class Subject:
    """A folder and what it says of itself."""

    folder: Path
    described: Described

    @staticmethod
    def open(folder: Path) -> Subject:
        """Raises `EdgepackError` for a folder that edgepack did not write."""
        return Subject(folder, describe(folder))

    @property
    def kind(self) -> str:
        """The target; `ADAPTER` for an adapter."""
        return str(self.manifest["target"]) if self.has_manifest else ADAPTER

    @property
    def has_manifest(self) -> bool:
        """Whether it is an output folder."""
        return self.described.name == MANIFEST

    @property
    def manifest(self) -> Mapping[str, Any]:
        """manifest.json, adapter.json or extract.json."""
        return self.described.about

    @property
    def artifact(self) -> Artifact:
        """It as an output folder."""
        return Artifact(self.folder, dict(self.manifest))

    @property
    def is_packed(self) -> bool:
        """Whether its weights have formats."""
        return self.kind in (GGUF, ONNX)

    def listed(self, suffix: str) -> list[Path]:
        """Its files with a suffix, those that are missing and those of adapters excepted."""
        names = sorted(n for n in self.described.files if n.endswith(suffix))
        own = (self.folder / name for name in names if not name.startswith(f"{FOLDER}/"))
        return [path for path in own if path.is_file()]

    @cached_property
    def base(self) -> PackedBase:
        """Its files as a packed model, whose digests are taken from the manifest."""
        name, files = str(self.manifest["model"]["model"]), weight_files(self.manifest)
        return PackedBase(self.folder, name, self.kind, files)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its model, as its files have it."""
        if self.is_packed:
            return self.base.checkpoint
        return open_checkpoint(str(self.folder.resolve()))

    @cached_property
    def formats(self) -> dict[str, WeightFormat]:
        """How its files store every matrix; no value is read. Those of a checkpoint are floats."""
        found = self.checkpoint
        if self.kind == ONNX:
            from edgepack.export.onnx_checkpoint import OnnxCheckpoint  # onnx is an extra

            assert isinstance(found, OnnxCheckpoint)
            return dict(found.formats)
        if not self.is_packed:
            matrices = (spec.name for spec in found.specs.values() if spec.is_matrix)
            return {name: WeightFormat("f16") for name in matrices}
        factors, ranks = self.base.stored_factors, self.base.ranks
        formats = {}
        for name, spec in found.specs.items():
            if not spec.is_matrix:
                continue
            Q, rank = spec.dtype.lower(), ranks.get(name, 0)
            L, R = factors.types(name) if factors and rank else (None, None)
            formats[name] = WeightFormat(Q, rank, L, R)
        return formats
