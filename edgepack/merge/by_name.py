"""A folder of a family that edgepack does not know: tensors by name, no meaning.

Such models can be merged where all inputs have the same tensors, but not compressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.checkpoint import digests, quantization, scaled, shards
from edgepack.checkpoint.base import reopened
from edgepack.checkpoint.folder import CONFIG, GENERATION, TOKENIZER
from edgepack.checkpoint.passed_over import BUFFERS
from edgepack.checkpoint.source_files import Known, SourceFiles
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError


class ByName:
    """A Hugging Face folder; `revision` is the commit of a Hub snapshot."""

    def __init__(self, folder: Path, model: str, revision: str | None = None) -> None:
        self.folder, self.model, self.revision = folder, model, revision
        self.place = shorten(model if revision else folder.resolve().name, 80)
        self._files = SourceFiles()
        path = folder / CONFIG
        content = self._files.read_json(path)
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{self.place}: {CONFIG} holds a {type(content).__name__}, not settings by name",
                hint="take the config.json published with the model",
            )
        self.config: Mapping[str, Any] = content
        self._weights = shards.weight_files(folder, self._files, self.place)
        self.places = self._read_headers()

    def _read_headers(self) -> Mapping[str, scaled.Source]:
        block = quantization.block_of(self.config, self.place)
        coded = self.config.get(quantization.KEY) is not None
        found: dict[str, shards.Place] = {}
        for weights in self._weights:
            for name, place in shards.header(weights, self._files).items():
                if not name.endswith(BUFFERS):
                    self._add(found, name, place, coded)
        return scaled.joined(found, self.place, block) if coded else found

    def _add(
        self, found: dict[str, shards.Place], name: str, place: shards.Place, coded: bool
    ) -> None:
        if name in found:
            raise CheckpointError(
                f"{self.place}: {shorten(name, 80)} is there twice",
                hint="files of two models may be in one folder: keep one set",
            )
        if not (coded and place.dtype in shards.CODES):
            shards.refuse_unreadable(place.path, name, place)
        found[name] = place

    @cached_property
    def digests(self) -> dict[str, str]:
        """File → sha256 of all that belongs to the model."""
        named = [self.folder / CONFIG, self.folder / GENERATION, *self._weights]
        matched = [path for pattern in TOKENIZER for path in self.folder.glob(pattern)]
        paths = sorted({path for path in (*named, *matched) if path.is_file()})
        return {p.relative_to(self.folder).as_posix(): self._files.sha256(p) for p in paths}

    @property
    def key(self) -> str:
        """Hex digest of the model's content."""
        return digests.combine(self.digests)

    @property
    def source(self) -> Mapping[str, Any]:
        """Where it came from, as `Checkpoint.source`."""
        if self.revision:
            name = self.model.partition("@")[0]
            return {"model": name, "kind": "hub", "revision": self.revision}
        return {"model": self.place, "kind": "folder", "files": self.digests}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the place that it is opened from."""
        arguments = self.folder.resolve(), self.model, self.revision
        return reopened, (ByName, arguments, self.key, self._files.known())

    def file_digests(self) -> Mapping[str, str]:
        """See `Checkpoint`."""
        return self.digests

    def trust(self, known: tuple[Known, ...]) -> None:
        """See `Checkpoint`."""
        self._files.trust(known)

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self.places[name].read(self._files)
