"""A Hugging Face folder (safetensors, config.json, tokenizer) as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from torch import Tensor

from edgepack.checkpoint import (
    _layout,
    card,
    completed,
    detect,
    digests,
    gguf_dimensions,
    passed_over,
    quantization,
    rope,
    rounded,
    scaled,
    shards,
    special,
    tokenizer,
    values,
    vocabulary,
)
from edgepack.checkpoint.base import Checkpoint, Dimensions, reopened
from edgepack.checkpoint.config import Generation, bias_switch, read
from edgepack.checkpoint.source_files import Known, SourceFiles
from edgepack.core.headers import NotReadError
from edgepack.core.untrusted import shorten, validate
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Files from which transformers may read a tokenizer and its templates."""
FILES = (
    "config.json",
    "adapter_config.json",
    "model*.safetensors",
    shards.INDEX,
    *TOKENIZER,
    "generation_config.json",
    "README.md",
)
"""Files of a repository that are downloaded; ``consolidated.safetensors`` has the same weights."""
CONFIG, GENERATION = "config.json", "generation_config.json"
ADAPTER = "adapter_config.json"
ADAPTER_HINT = "to merge an adapter, write model: {base: …, adapter: …} in the recipe"
UNTIED = (
    "{}: the head differs from the embedding that config.json ties it to, so it is read as a "
    "matrix of its own, as transformers does"
)
GENERATION_HINT = "take the one published with the model, or remove it"


class FolderCheckpoint(Checkpoint):
    """A folder as written by ``save_pretrained``; `revision` is the commit of a Hub snapshot."""

    _wrapped = False

    def __init__(self, folder: Path, model: str, revision: str | None = None) -> None:
        self.folder, self.model, self.revision = folder, model, revision
        self.place = shorten(model if revision else folder.resolve().name, 80)
        self._files = SourceFiles()
        whole = self._read_config()
        self._wrapped = completed.is_wrapped(whole)
        self.architecture, self._config, self.dimensions = read(whole, self.place)
        self._weights = shards.weight_files(folder, self._files, self.place)
        places = self._read_headers(whole)
        blocks = self.dimensions.num_hidden_layers
        self._places, self._left_out = passed_over.split(places, self.architecture, blocks)
        self._tie()
        found = {name: _layout.TensorInfo(p.shape, p.dtype) for name, p in self._places.items()}
        self.specs, _ = _layout.match(
            self.place, self.architecture, self.dimensions, found, self.architecture.hf_name
        )
        self._refuse_unread_biases()
        self._read_files = self._list_files()
        self._files.check(self._read_files)

    def _read_headers(self, config: Mapping[str, Any]) -> dict[str, scaled.Source]:
        """Every tensor by its name, codes together with their scales."""
        block = quantization.block_of(config, self.place)
        coded = quantization.is_coded(config)
        found = shards.tensors(
            self._weights,
            self.architecture,
            self._files,
            self.place,
            wrapped=self._wrapped,
            coded=coded,
        )
        if not coded:
            return dict(found)
        return scaled.apart(scaled.joined(found, self.place, block), self.architecture)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the place that it is opened from."""
        arguments = self.folder.resolve(), self.model, self.revision
        return reopened, (_at_place, arguments, self.key, self._files.known())

    def file_digests(self) -> Mapping[str, str]:  # noqa: D102
        return self._digests

    def trust(self, known: tuple[Known, ...]) -> None:  # noqa: D102
        self._files.trust(known)

    def _list_files(self) -> list[Path]:
        """Every file that is read, except the model card."""
        index = shards.INDEX if self._weights != [self.folder / shards.SINGLE] else CONFIG
        named = [self.folder / name for name in (CONFIG, GENERATION, index)]
        matched = [path for pattern in TOKENIZER for path in self.folder.glob(pattern)]
        return sorted({path for path in (*named, *matched, *self._weights) if path.is_file()})

    @cached_property
    def _digests(self) -> dict[str, str]:
        self._check()
        names = [path.relative_to(self.folder).as_posix() for path in self._read_files]
        return dict(zip(names, self._files.all_sha256(self._read_files), strict=True))

    @property
    def key(self) -> str:  # noqa: D102
        if self.revision:
            about = {"hub": self.model.partition("@")[0], "rev": self.revision}
            return digests.combine(about | self._digests)
        return digests.combine(self._digests)

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        if self.revision:
            return {"model": self.model, "kind": "hub", "revision": self.revision}
        files = {} if self._are_unread else {"files": self._digests}
        return {"model": self.place, "kind": "folder", **files}

    @property
    def _are_unread(self) -> bool:
        """Whether a plan is made and the digests of the files are not known yet."""
        try:
            return self._digests is None
        except NotReadError:
            return True

    def warnings(self) -> tuple[str, ...]:  # noqa: D102
        unused = shards.unused_weights(self.folder, self._weights)
        adapter = (self.folder / ADAPTER).is_file()
        others = ""
        if self._wrapped:
            others = shards.left_out(self._weights, self.architecture, self._files)
        return (
            *filter(None, (unused, others)),
            *([f"{ADAPTER} is not read: {ADAPTER_HINT}"] if adapter else []),
            *([UNTIED.format(self.place)] if self._untied else []),
            *passed_over.told(self._left_out),
            *rounded.warning(self.specs.values(), self.place),
        )

    def gguf_warnings(self) -> tuple[str, ...]:  # noqa: D102
        return (*_window_warning(self.dimensions), *self._description[1])

    def stored(self, name: str) -> tuple[Tensor, str]:  # noqa: D102
        place = self._places[name]
        return place.read(self._files), place.kind

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        stored, role = self._places[name].read(self._files), self.specs[name].role
        return values.from_hf(self.architecture, self.dimensions, role, stored)

    def rows(self, name: str, rows: Tensor) -> Tensor:  # noqa: D102
        place = self._places[name]
        if not isinstance(place, shards.Place):
            return super().rows(name, rows)
        count = place.shape[0]
        read = [place.rows(index, count).read(self._files) for index in rows.tolist()]
        return torch.cat(read).to(torch.float32)

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        return None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # noqa: D102
        self._check()
        loaded = tokenizer.from_folder(self.folder)
        self._check()
        return loaded

    def _check(self) -> None:
        """Raise if a file was changed, added or removed since the folder was opened."""
        self._files.check(self._read_files)
        if self._list_files() != self._read_files:
            raise digests.changed_error(self.folder)

    def generation_config(self) -> Mapping[str, Any]:  # noqa: D102
        path = self.folder / GENERATION
        content: dict[str, Any] = self._files.read_json(path) if path.is_file() else {}
        validate(
            Generation,
            content,
            f"{self.place}: {GENERATION}",
            CheckpointError,
            hint=GENERATION_HINT,
        )
        found = {key: value for key, value in content.items() if value is not None}
        return special.with_ends(found, self._config.model_dump())

    def extra_tensors(self) -> Mapping[str, Tensor]:  # noqa: D102
        return rope.extra_tensors(self.dimensions)

    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:  # noqa: D102
        return self._gguf_metadata

    @cached_property
    def _gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        """Cached, because a large vocabulary takes seconds."""
        writer = gguf.GGUFWriter(None, self.architecture.gguf)
        writer.add_type("model")
        self._description[0].set_gguf_meta_model(writer)
        gguf_dimensions.write(writer, self.architecture, self.dimensions, self.place)
        vocabulary.write(
            writer,
            self.tokenizer,
            self.dimensions.vocab_size,
            self._config.model_dump(),
            self.generation_config(),
        )
        entries = writer.kv_data[0].items()
        return {key: (entry.value, entry.type, entry.sub_type) for key, entry in entries}

    @cached_property
    def _description(self) -> tuple[gguf.Metadata, tuple[str, ...]]:
        """Name, licence, size …, and warnings about entries of the model card that are lost."""
        name = Path(self.model.partition("@")[0] if self.revision else self.folder.resolve())
        return card.describe(self.folder, name, self.specs.values())

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / CONFIG
        if not path.is_file():
            raise CheckpointError(
                f"{self.place}: there is no readable {CONFIG}", hint=detect.no_config(self.folder)
            )
        content = self._files.read_json(path)
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{self.place}: {CONFIG} holds a {type(content).__name__}, not settings by name",
                hint="take the config.json published with the model",
            )
        return content

    def _tie(self) -> None:
        """Read the two matrices of a tied model as transformers does: a copy of the embedding is
        no weight, another head unties them, and a head alone is the embedding."""
        self._untied = False
        head, embedding = map(self.architecture.hf_name, ("output", "token_embd"))
        if not self.dimensions.tie_word_embeddings or head not in self._places:
            return
        if embedding not in self._places:
            self._places[embedding] = self._places.pop(head)
        elif torch.equal(*(self._places[name].read(self._files) for name in (head, embedding))):
            del self._places[head]
        else:
            self._untied = True
            self.dimensions = replace(self.dimensions, tie_word_embeddings=False)

    def _refuse_unread_biases(self) -> None:
        """Refuse biases that transformers would not load, because the configuration lacks them."""
        optional = {role for role in self.architecture.optional if role.endswith(".bias")}
        for spec in self.specs.values():
            switch = bias_switch(spec.role)
            if spec.role in optional and not getattr(self._config, switch):
                raise CheckpointError(
                    f"{self.place}: {spec.name} is there, but config.json has no {switch}: true",
                    hint=f"set {switch} to true if the biases are meant, or remove them",
                )


def _at_place(folder: Path, model: str, revision: str | None) -> FolderCheckpoint:
    """Open a folder again. A snapshot of the Hub lies elsewhere on another machine."""
    if revision is not None and not folder.is_dir():
        from edgepack.checkpoint import hub

        folder = hub.snapshot(f"{model.partition('@')[0]}@{revision}")
    return FolderCheckpoint(folder, model, revision)


def _window_warning(dims: Dimensions) -> tuple[str, ...]:
    window, context = dims.sliding_window, dims.max_position_embeddings
    if dims.layer_types or window is None or window >= context:
        return ()
    return (
        f"GGUF has no sliding window for this architecture: right up to {window} positions, and "
        f"the file says that its context is {window} (config.json: {context})",
    )
