# ruff: noqa: D102  (documented in `Checkpoint`)
"""A model with PEFT adapters: every weight is changed as it is read, in float32.

It computes what PEFT's model computes. That matters where the head is tied to the embeddings: an
adapter that changes one of the two and not the other unties them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from gguf import GGUFValueType
from torch import Tensor

from edgepack.checkpoint import Checkpoint, gguf_dimensions, passed_over, values, vocabulary
from edgepack.checkpoint.adapter_folder import tokenizer_files
from edgepack.checkpoint.digests import combine, sha256
from edgepack.checkpoint.lora import OTHER_MODEL, LoraAdapter
from edgepack.checkpoint.lora_change import Shape
from edgepack.checkpoint.save import DTYPES
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import CheckpointError
from edgepack.model.rewritten import Rewritten, untied_specs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = "tokenizer."
"""Prefix of the keys of a GGUF that a tokenizer saved with an adapter replaces."""
NAME = "general.name"


class Adapted(Rewritten):
    """`base` with adapters, each on top of what those before it made."""

    def __init__(self, base: Checkpoint, adapters: Sequence[LoraAdapter]) -> None:
        family = base.architecture
        self.embedding, self.head = map(family.hf_name, ("token_embd", "output"))
        self.adapters, self.base = tuple(adapters), base
        tied = base.dimensions.tie_word_embeddings
        self._untying = [tied and self._unties(adapter) for adapter in self.adapters]
        self.unties = any(self._untying)
        specs = {spec.name: spec for spec in (untied_specs(base) if tied else base.specs.values())}
        shapes: dict[str, Shape] = {name: spec.shape for name, spec in specs.items()}
        for adapter in self.adapters:
            shapes |= self._check(adapter, shapes)
        if tied and not self.unties:
            del specs[self.head]
        rows = {shapes[name][0] for name in (self.embedding, self.head) if name in specs}
        if len(rows) > 1:
            raise CheckpointError(
                f"{self.title}: embeddings and head have {' and '.join(map(str, sorted(rows)))} "
                "rows",
                hint="save the adapter with save_embedding_layers=True, so that it holds both",
            )
        changed = {name for name in specs if self._changes(name)}
        made = {
            name: replace(
                spec,
                shape=shapes[name],
                dtype=spec.dtype if spec.dtype in DTYPES or name not in changed else "F16",
            )
            for name, spec in specs.items()
        }
        dimensions = replace(
            base.dimensions, vocab_size=rows.pop(), tie_word_embeddings=tied and not self.unties
        )
        super().__init__(base, dimensions, made, {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is made of."""
        return Adapted, (self.base, self.adapters)

    @property
    def original(self) -> Checkpoint:
        return self  # every KL is measured from the fine-tune, not from its base

    @property
    def counted(self) -> Checkpoint:
        return self

    @property
    def title(self) -> str:
        """Its name for people."""
        return "+".join([str(self.base.source["model"]), *(one.name for one in self.adapters)])

    @property
    def source(self) -> Mapping[str, Any]:
        return {
            "model": self.title,
            "kind": "adapted",
            "base": dict(self.base.source),
            "adapters": [self._source(adapter) for adapter in self.adapters],
        }

    def _source(self, adapter: LoraAdapter) -> dict[str, Any]:
        if adapter.revision:
            return {"model": adapter.name, "kind": "hub", "revision": adapter.revision}
        files = self._digests[self.adapters.index(adapter)]
        return {"model": adapter.name, "kind": "folder", "files": files}

    @cached_property
    def _digests(self) -> list[dict[str, str]]:
        """sha256 of what is read of each adapter."""
        found = []
        for adapter in self.adapters:
            used = tokenizer_files(adapter.folder) if adapter is self._speaker else []
            names = {path.relative_to(adapter.folder).as_posix(): path for path in used}
            found.append(dict(adapter.digests) | {n: sha256(path) for n, path in names.items()})
        return found

    @property
    def key(self) -> str:
        digests = " ".join(map(combine, self._digests))
        return combine({"original": self.base.key, "adapters": digests})

    def tensor(self, name: str) -> Tensor:
        if not self._changes(name):
            return self.base.tensor(self._stored_name(name))
        about = self.architecture, self.base.dimensions, self.specs[name].role
        W = values.to_hf(*about, self.base.tensor(self._stored_name(name)))  # as adapters know it
        for adapter, known_as in zip(self.adapters, self._names(name), strict=True):
            W = adapter.apply(known_as, W)
        return values.from_hf(*about, W)

    def stored(self, name: str) -> tuple[Tensor, str]:
        if self._changes(name):
            return self.tensor(name), "F32"
        return self.base.stored(self._stored_name(name))

    def quantized(self, name: str) -> QuantizedTensor | None:
        return None if self._changes(name) else self.base.quantized(self._stored_name(name))

    def _stored_name(self, name: str) -> str:
        """The weight of the base that a weight is made of."""
        return name if name in self.base.specs else self.embedding

    def _changes(self, name: str) -> bool:
        pairs = zip(self.adapters, self._names(name), strict=True)
        return any(known_as in adapter.changes for adapter, known_as in pairs)

    def _names(self, name: str) -> list[str]:
        """The name under which each adapter changes a weight. The one matrix of a tied model may
        be changed as the embeddings or as the head, and both of an untied one by an adapter that
        does not untie them."""
        ends = (self.embedding, self.head)
        if name not in ends or not self.base.dimensions.tie_word_embeddings:
            return [name] * len(self.adapters)
        names = []
        for adapter, unties in zip(self.adapters, self._untying, strict=True):
            other = next((end for end in ends if end in adapter.changes), name)
            names.append(name if unties or name in adapter.changes else other)
        return names

    def _unties(self, adapter: LoraAdapter) -> bool:
        """Whether the head of a tied model is another matrix than the embeddings afterwards."""
        embedding, head = (adapter.changes.get(name) for name in (self.embedding, self.head))
        if embedding is None and head is None:
            return False
        if adapter.config.ensure_weight_tying:
            return False
        if embedding is not None and head is None:
            # PEFT trains rows of tied weights together. Other rows have no head but these.
            resized = embedding.shape(self.base.specs[self.embedding].shape)
            return embedding.rows is None and resized == self.base.specs[self.embedding].shape
        if embedding is None or embedding.whole is None or head is None or head.whole is None:
            return True
        W = torch.empty(0)  # both take its place
        return not torch.equal(adapter.apply(self.embedding, W), adapter.apply(self.head, W))

    def _check(self, adapter: LoraAdapter, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of what an adapter changes."""
        if not adapter.changes:
            raise CheckpointError(f"{adapter.name}: changes no weight", hint=OTHER_MODEL)
        model = str(self.base.source["model"])
        return adapter.check(shapes, model, (self.embedding, self.head))

    @cached_property
    def _speaker(self) -> LoraAdapter | None:
        """The last adapter that has a tokenizer."""
        found = [one for one in self.adapters if tokenizer_files(one.folder)]
        return found[-1] if found else None

    @cached_property
    def _own_tokenizer(self) -> PreTrainedTokenizerFast | None:
        if self._speaker is None:
            return None
        found = from_folder(self._speaker.folder)
        if found.chat_template is None:  # adapters saved without it were trained with the base's
            found.chat_template = self.base.tokenizer.chat_template
        return found

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.base.tokenizer if self._own_tokenizer is None else self._own_tokenizer

    def warnings(self) -> tuple[str, ...]:
        untied = (
            f"{self.title}: the adapter changes embeddings or head and not both, so that the head "
            "becomes a matrix of its own, as in PEFT"
        )
        others = [
            f"{adapter.name}: {line}"
            for adapter in self.adapters
            for line in passed_over.told(adapter.left_out)
        ]
        return (*self.base.warnings(), *([untied] if self.unties else []), *others)

    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        return self._gguf_metadata

    @cached_property
    def _gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        if self.unties:  # llama.cpp may know the family with a tied head only
            writer = gguf.GGUFWriter(None, self.architecture.gguf)
            gguf_dimensions.write(writer, self.architecture, self.dimensions, self.title)
        made = dict(self.base.gguf_metadata())  # the dimensions are those of the base
        size, rows = f"{self.architecture.gguf}.vocab_size", self.dimensions.vocab_size
        name = "+".join([str(made.get(NAME, ("model",))[0]), *map(_short, self.adapters)])
        made[NAME] = (name, GGUFValueType.STRING, None)
        if size in made:
            made[size] = (rows, GGUFValueType.UINT32, None)
        if self._own_tokenizer is None and rows == self.base.dimensions.vocab_size:
            return made
        writer = gguf.GGUFWriter(None, self.architecture.gguf)
        vocabulary.write(writer, self.tokenizer, rows, {}, self.generation_config())
        entries = writer.kv_data[0].items()
        own = {key: (entry.value, entry.type, entry.sub_type) for key, entry in entries}
        own.pop("general.architecture", None)
        kept = {key: entry for key, entry in made.items() if not key.startswith(VOCABULARY)}
        return {**kept, **own}


def _short(adapter: LoraAdapter) -> str:
    return Path(adapter.name.partition("@")[0]).name
