"""The result of a merge as a checkpoint: known before it is made, then read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gguf

from edgepack.checkpoint import _layout, card, shards, special
from edgepack.checkpoint.config import read
from edgepack.checkpoint.folder import FolderCheckpoint
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.checkpoint.tokenizer import from_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from edgepack.merge.stage import Merge


class MergedCheckpoint(FolderCheckpoint):
    """What the folder of `stage` holds once that is done. Names, shapes, dimensions and tokenizer
    follow from the models' headers and the recipe."""

    def __init__(self, stage: Merge) -> None:
        self.stage, self.model, self.revision = stage, stage.title, None
        self.folder, self.place = stage.folder, stage.title
        self._files = SourceFiles()
        self.merged_config = stage.config
        self.architecture, self._config, self.dimensions = read(self.merged_config, self.place)
        found = {t.name: _layout.TensorInfo(t.shape, t.dtype) for t in stage.layout.tensors}
        self.specs, _ = _layout.match(
            self.place, self.architecture, self.dimensions, found, self.architecture.hf_name
        )
        self._refuse_unread_biases()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the stage that makes it."""
        return MergedCheckpoint, (self.stage,)

    @cached_property
    def _places(self) -> dict[str, shards.Place]:  # type: ignore[override]
        paths = shards.weight_files(self.folder, self._files, self.place)
        return shards.tensors(paths, self.architecture, self._files, self.place)

    @property
    def key(self) -> str:  # noqa: D102
        return self.stage.key

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        return self.stage.source

    def warnings(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self.stage.notes)

    def generation_config(self) -> Mapping[str, Any]:  # noqa: D102
        return special.with_ends(self.stage.generation, self._config.model_dump())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # noqa: D102
        merged, donor = self.stage.tokenizer, self.stage.donor.checkpoint
        if merged is None:
            assert donor is not None
            return donor.tokenizer
        source = self.stage.tokenizer_folder
        if source is not None and not source.is_dir():  # of a merge that is not made yet
            source = None
        with TemporaryDirectory() as folder:
            merged.write(Path(folder), source)
            return from_folder(Path(folder))

    @cached_property
    def _description(self) -> tuple[gguf.Metadata, tuple[str, ...]]:
        return card.apply(self.stage.card_entries, Path(self.model), self.specs.values())
