"""The merge stage: several models in, the Hugging Face folder of one out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from edgepack.checkpoint.folder import GENERATION
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core import plugins
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk, Stage
from edgepack.merge import card
from edgepack.merge.checkpoint import MergedCheckpoint
from edgepack.merge.copying import copy_tokenizer
from edgepack.merge.fisher.plan import TEXT, Fisher
from edgepack.merge.fisher.weighting import summary
from edgepack.merge.inputs import Input, is_local, place_of, published
from edgepack.merge.layout import Layout
from edgepack.merge.methods import KIND
from edgepack.merge.methods.base import Method
from edgepack.merge.outside import Outside
from edgepack.merge.settings import settings, with_token_ids
from edgepack.merge.stream import LIMIT, Work, stream
from edgepack.merge.tokenizers import MergedTokenizer
from edgepack.planning.plan import READS, Plan
from edgepack.recipe import merging

MERGE = "merge."
"""Start of the keys of models in `sources` of a manifest."""
CONFIG, RECIPE, README = "config.json", "mergekit_config.yml", "README.md"


@dataclass(frozen=True)
class Options:
    """What a merge depends on beside its recipe."""

    seed: int = 0
    shard_size: int = 5_000_000_000


@dataclass(frozen=True)
class Merge(Stage):
    """A Hugging Face folder with the merged model. `donor` is the model whose configuration and
    side files are kept, `tokenizer` says how the tokenizer is made (None: the donor's, as it is),
    `outside` is a model that is not merged and gives the tokenizer. `title` is what the result is
    called."""

    title: str
    merge: merging.Merge
    layout: Layout
    method: Method
    donor: Input
    tokenizer: MergedTokenizer | None
    more: Options
    notes: tuple[str, ...] = ()
    fisher: Fisher | None = None
    outside: Outside | None = None

    name = "merge"

    @property
    def code(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: D102
        method = plugins.module(KIND, self.method.name)
        return ("edgepack.merge.stage", method, *READS)

    @cached_property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        models = tuple(model.key for model in self.layout.inputs)
        more = () if self.outside is None else (self.outside.key,)
        return (*models, *more, *(() if self.fisher is None else self.fisher.keys))

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {
            "title": self.title,
            "merge": self.published,
            "seed": self.more.seed,
            "shard_size": self.more.shard_size,
        }

    @cached_property
    def published(self) -> dict[str, Any]:
        """The recipe, with names for models that hold anywhere."""
        names = {model.reference: model for model in self.layout.inputs}

        def renamed(name: str) -> str:
            if is_of_folder(self.outside) and name == self.outside.reference.model:
                return self.outside.name
            return published(name, names)

        new = self.merge.renamed(renamed, text_name)
        return new.model_dump(mode="json", exclude_defaults=True)

    @cached_property
    def key(self) -> str:
        """Hex digest of everything that determines the result; computed once."""
        return super().key

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the result."""
        rows = None if self.tokenizer is None else self.tokenizer.rows.count
        config = settings(self.layout, self.donor, rows)
        owner = self.token_owner
        return config if owner is self.donor else with_token_ids(config, owner.config)

    @cached_property
    def token_owner(self) -> Input | Outside:
        """The model whose tokenizer is kept, or extended."""
        if self.tokenizer is None:
            return self.donor
        if self.outside is not None:
            return self.outside
        name = self.tokenizer.origin.model
        return next(model for model in self.layout.inputs if model.name == name)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json of the result: the donor's, with ids of its own tokenizer."""
        content, owner = _generation(self.donor), self.token_owner
        if owner is self.donor:
            return content
        own = owner.generation if isinstance(owner, Outside) else _generation(owner)
        return with_token_ids(content, own or owner.config)

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where the result comes from, for manifests."""
        sources: dict[str, Any] = {model.name: model.source for model in self.layout.inputs}
        if self.outside is not None:
            sources[self.outside.name] = self.outside.source
        files = {
            f"{name}/{file}": digest
            for name, source in sources.items()
            for file, digest in source.get("files", {}).items()
        }
        return {
            "model": self.title,
            "kind": "merge",
            "method": self.method.name,
            "sources": sources,
            "files": files,
        }

    @cached_property
    def checkpoint(self) -> MergedCheckpoint:
        """What the folder holds once it is there. Raises `CheckpointError` for a family that
        edgepack does not know."""
        return MergedCheckpoint(self)

    @cached_property
    def card_entries(self) -> dict[str, Any]:
        """The header of the model card."""
        return card.entries(self.title, self.layout.inputs, self.merge.base_model)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the model whose tokenizer is kept; None if it is in no folder."""
        return self.token_owner.folder

    @property
    def work(self) -> Work:
        """The arithmetic."""
        rows = None if self.tokenizer is None else self.tokenizer.rows
        weighting = None if self.fisher is None else self.fisher.weighting()
        return Work(self.layout, self.method, self.merge.dtype, self.more.seed, rows, weighting)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        self._write_small_files(folder)
        work = self.work
        if work.weighting is not None:
            work.weighting.folder = folder
        yield from stream(work, folder, self.more.shard_size, executor=executor)
        if work.weighting is not None:
            work.weighting.finish()

    def _write_small_files(self, folder: Path) -> None:
        """Everything but the weights."""
        _write_json(folder / CONFIG, self.config)
        if self.generation:
            _write_json(folder / GENERATION, self.generation)
        if self.tokenizer is not None:
            self.tokenizer.write(folder, self.tokenizer_folder)
        elif self.donor.folder is not None:
            copy_tokenizer(self.donor.folder, folder)
        elif self.donor.checkpoint is not None:
            self.donor.checkpoint.tokenizer.save_pretrained(folder)
        text = yaml.safe_dump(self.published, sort_keys=False, allow_unicode=True)
        _write(folder / RECIPE, text)
        about = card.render(self.card_entries, self.title, self.layout.inputs, self.method, text)
        _write(folder / README, about)

    def facts(self) -> dict[str, Any]:
        """What was merged, and how."""
        return {
            "merge": {
                "method": self.method.name,
                "models": [model.name for model in self.layout.inputs],
                "layers": len(self.layout.origins),
                "bytes": self.layout.nbytes,
                **self._weighted_facts(),
            }
        }

    def _weighted_facts(self) -> dict[str, Any]:
        """Of a weighted merge: what has H, and how it turned out once it is done."""
        if self.fisher is None:
            return {}
        found = summary(self.folder) if self.is_done else {}
        return {"weighted": self.fisher.facts(self.layout) | found}

    def memory(self) -> int:
        """The tensors in work, or the largest one where it needs more."""
        work = self.work
        return max(LIMIT, *(work.needs(tensor) for tensor in self.layout.tensors))

    def disk(self) -> Disk:
        """The files of the result."""
        return Disk(self.layout.nbytes, self.layout.nbytes)


def join(plan: Plan) -> Plan:
    """The plan with the merges that its model comes from, each after those that it needs."""
    if not isinstance(plan.original, MergedCheckpoint):
        return plan
    return plan.adding(*all_stages_of(plan.original.stage))


def all_stages_of(last: Merge) -> list[Stage]:
    """`stages_of`, and the calibrations that weighted ones need."""
    found: dict[str, Stage] = {}
    for merge in stages_of(last):
        before = () if merge.fisher is None else merge.fisher.stages
        found |= {stage.key: stage for stage in (*before, merge)}
    return list(found.values())


def stages_of(last: Merge) -> list[Merge]:
    """A merge, and before it those whose results it reads."""
    found: list[Merge] = []
    for model in last.layout.inputs:
        if isinstance(model.model, MergedCheckpoint):
            found += [s for s in stages_of(model.model.stage) if s not in found]
    return [*found, last]


def merge_sources(last: Merge) -> dict[str, tuple[Path, str]]:
    """``merge.NAME`` → the file or folder of this machine that the published recipe means by the
    name, and its digest; for all models and adapters of a merge and of those before it."""
    found: dict[str, tuple[Path, str]] = {}
    for stage in stages_of(last):
        names = {model.reference: model for model in stage.layout.inputs}
        for reference, model in names.items():
            if is_local(model) and (path := place_of(model)) is not None:
                name = published(reference.model, names)
                found[MERGE + name] = (path, model.model.key)
            adapter = model.adapter
            if adapter is not None and adapter.revision is None:
                found[MERGE + adapter.name] = (adapter.folder, adapter.key)
        if is_of_folder(stage.outside):
            found[MERGE + stage.outside.name] = (stage.outside.folder, stage.outside.key)
        if stage.fisher is not None:
            found |= {MERGE + TEXT + name: place for name, place in stage.fisher.texts.items()}
    return found


def is_of_folder(outside: Outside | None) -> TypeGuard[Outside]:
    """Whether a tokenizer comes from a folder of this machine."""
    return outside is not None and outside.revision is None


def text_name(text: str) -> str:
    """What a text is called in a published recipe."""
    return text if text == "self" else Path(text).name


def _generation(model: Input) -> dict[str, Any]:
    """generation_config.json of a model; empty if there is none."""
    if isinstance(model.model, MergedCheckpoint):
        return model.model.stage.generation
    if model.folder is None:
        return {} if model.checkpoint is None else dict(model.checkpoint.generation_config())
    path = model.folder / GENERATION
    content: dict[str, Any] = SourceFiles().read_json(path) if path.is_file() else {}
    return {key: value for key, value in content.items() if key != "_from_model_config"}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
