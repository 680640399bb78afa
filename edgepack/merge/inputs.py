"""The models of a merge: names and shapes of their tensors from headers, tensors one at a time.

An input is a folder, a hub id, a .gguf file, or the result of an earlier merge, each with a LoRA
adapter perhaps. Families that edgepack does not know are read by name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import Checkpoint, hub, open_checkpoint, values
from edgepack.checkpoint._layout import TensorInfo
from edgepack.checkpoint.adapter_folder import open_adapter
from edgepack.checkpoint.completed import text_config
from edgepack.checkpoint.digests import combine
from edgepack.checkpoint.folder import CONFIG
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.checkpoint.lora import LoraAdapter
from edgepack.checkpoint.naming import naming
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core import plugins
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError
from edgepack.merge.by_name import ByName
from edgepack.recipe.references import Reference

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Keys of config.json that say how many layers there are, in the families of transformers."""
_NUMBERED = re.compile(r"(.+?)\.(\d{1,6})\.(.+)")
FLOATS = ("F64", "F32", "F16", "BF16")
BLOCK = 1 << 17
"""Numbers looked at together: as float32 they stay in a core's cache."""
SUMS = {torch.float64: torch.float64}


@dataclass(frozen=True)
class Layers:
    """Tensors of layer i are called ``prefix.i.…``; there are `count` layers."""

    prefix: str
    count: int

    def split(self, name: str) -> tuple[int | None, str]:
        """Layer of a tensor and its name there; None and the whole name outside the layers."""
        found = _NUMBERED.fullmatch(name)
        if found is None or found[1] != self.prefix:
            return None, name
        return int(found[2]), found[3]

    def name(self, layer: int, inside: str) -> str:
        """Name of a tensor of a layer."""
        return f"{self.prefix}.{layer}.{inside}"

    @staticmethod
    def guess(names: Iterable[str]) -> Layers | None:
        """The longest list of layers, by its tensors' names; None if there is no list."""
        found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
        if not found:
            return None
        prefix, _ = Counter(match[1] for match in found).most_common(1)[0]
        return Layers(prefix, 1 + max(int(match[2]) for match in found if match[1] == prefix))


@dataclass(frozen=True, eq=False)
class Input:
    """A model of a merge. `name` is for people: a hub id, or the name of a folder or a file."""

    reference: Reference
    name: str
    model: Checkpoint | ByName
    adapter: LoraAdapter | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model as a checkpoint of a known family; None if its family is unknown."""
        return None if isinstance(self.model, ByName) else self.model

    @property
    def architecture(self) -> Architecture | None:
        """Its family, None for an unknown one."""
        return None if self.checkpoint is None else self.checkpoint.architecture

    @property
    def folder(self) -> Path | None:
        """The folder that its configuration and tokenizer are in; None if it is no folder yet."""
        folder: Path | None = getattr(self.model, "folder", None)
        return folder

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape and stored type of every tensor; a tied head has no entry."""
        if isinstance(self.model, ByName):
            places = self.model.places.items()
            return {name: TensorInfo(place.shape, place.dtype) for name, place in places}
        specs = self.model.specs.values()
        return {spec.name: TensorInfo(spec.shape, spec.dtype) for spec in specs}

    @cached_property
    def layers(self) -> Layers | None:
        """How its layers are called; None if it has none."""
        if isinstance(self.model, ByName):
            return Layers.guess(self.tensors)
        family, d = self.model.architecture, self.model.dimensions
        return Layers(family.layers, d.num_hidden_layers)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json; of a GGUF, one with the same meaning."""
        if isinstance(self.model, ByName):
            return dict(self.model.config)
        given = getattr(self.model, "merged_config", None)
        if given is not None:
            return dict(given)
        if self.folder is not None and not self.model.architecture.saved_as:
            return text_config(SourceFiles().read_json(self.folder / CONFIG), self.name)
        from edgepack.checkpoint.save import config

        return config(self.model)

    @property
    def key(self) -> str:
        """Hex digest of its content."""
        if self.adapter is None:
            return self.model.key
        return combine({"model": self.model.key, "lora": self.adapter.key})

    @property
    def source(self) -> dict[str, Any]:
        """Where it came from, for manifests."""
        found = dict(self.model.source)
        if self.adapter is not None:
            found["lora"] = {"model": self.adapter.name, "files": dict(self.adapter.digests)}
        return found

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored (float32 if that is in blocks), with the adapter, every number
        of it finite."""
        W = self._stored(name)
        if not is_finite(W):
            what, where = _first_fault(W)
            raise CheckpointError(
                f"{self.name}: {name} holds {what} at {where}",
                hint="the model is damaged: fetch it again, or leave it out of the merge",
            )
        return W if self.adapter is None else self.adapter.apply(name, W)

    def _stored(self, name: str) -> Tensor:
        if isinstance(self.model, ByName):
            return self.model.read(name)
        if isinstance(self.model, GgufCheckpoint):
            W = self.model.tensor(name)
            role = self.model.specs[name].role
            W = values.to_hf(self.model.architecture, self.model.dimensions, role, W)
            kind = self.tensors[name].dtype
            return W.to({"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32))
        return self.model.stored(name)[0]


def is_finite(W: Tensor) -> bool:
    """Whether all numbers are finite. A sum is infinite or NaN if a number is, and needs one pass;
    where large numbers make it infinite, each is looked at."""
    for block in torch.split(W.reshape(-1), BLOCK):
        if not math.isfinite(block.sum(dtype=SUMS.get(W.dtype, torch.float32))) and not bool(
            torch.isfinite(block).all()
        ):
            return False
    return True


def _first_fault(W: Tensor) -> tuple[str, list[int]]:
    """What the first number that is not finite is, and where."""
    flat = W.reshape(-1)
    index = int(torch.nonzero(~torch.isfinite(flat))[0])
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), W.shape)] if W.ndim else []
    return "NaN" if bool(flat[index].isnan()) else "infinity", place


def open_input(reference: Reference, base: Path) -> Input:
    """Open a model of a merge, reading headers only. Relative paths start at `base`. A path with a
    plus sign in it that exists is that path, not an adapter."""
    whole = base / Path(str(reference)).expanduser()
    if reference.lora is not None and _exists(whole):
        reference = Reference(str(reference))
    with naming(reference.model):
        model = _open_model(reference.model, base)
    name = _name(model)
    if reference.lora is None:
        return Input(reference, name, model)
    family = None if isinstance(model, ByName) else model.architecture
    adapter = open_adapter(reference.lora, base, family)
    found = Input(reference, f"{name}+{adapter.name}", model, adapter)
    adapter.check({key: info.shape for key, info in found.tensors.items()}, name)
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long
        return False


def _name(model: Checkpoint | ByName) -> str:
    """Its name for people."""
    place = getattr(model, "place", None)
    return str(place) if place is not None else shorten(str(model.source["model"]), 80)


def _open_model(name: str, base: Path) -> Checkpoint | ByName:
    """The model; of a family that is not known, its tensors by name."""
    try:
        return open_checkpoint(name, base)
    except CheckpointError:
        found = _unknown_family(name, base)
        if found is None:
            raise
        return found


def _unknown_family(name: str, base: Path) -> ByName | None:
    """A folder whose `model_type` no family of edgepack has; None for whatever else is wrong."""
    path = base / Path(name).expanduser()
    revision = None
    if not _exists(path):
        if path.suffix.lower() == ".gguf" or not hub.ID.fullmatch(name):
            return None
        path = hub.snapshot(name)
        revision = path.name
    if not (path / CONFIG).is_file():
        return None
    content = SourceFiles().read_json(path / CONFIG)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind in plugins.names("architectures"):
        return None
    return ByName(path, name, revision)


def is_local(model: Input) -> bool:
    """Whether a path of this machine leads to it."""
    return place_of(model) is not None and model.model.source.get("kind") != "hub"


def place_of(model: Input) -> Path | None:
    """The folder or file that it is read from; None for what a package or a merge holds."""
    if isinstance(model.model, GgufCheckpoint):
        return None if model.model.model.startswith("package:") else model.model.path
    from_merge = hasattr(model.model, "merged_config")
    return None if from_merge else model.folder


def published(name: str, inputs: Mapping[Reference, Input]) -> str:
    """A name of a model or an adapter in the recipe, without this machine's folders."""
    for reference, model in inputs.items():
        if name == reference.model and is_local(model):
            return model.name.partition("+")[0]
        if name == reference.lora and model.adapter is not None and not model.adapter.revision:
            return model.adapter.name
    return name
