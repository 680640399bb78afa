"""What headers and configuration say of an input of a merge: what a check compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import Checkpoint, card
from edgepack.checkpoint._layout import TensorInfo
from edgepack.checkpoint.digests import combine, sha256
from edgepack.checkpoint.folder import TOKENIZER, FolderCheckpoint
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.core.untrusted import whole_number
from edgepack.merge.embeddings import ROLES
from edgepack.merge.inputs import Input
from edgepack.merge.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Verdict = Literal["ok", "warning", "error"]

SIZES = "weights of other shapes cannot be merged"
HEADS = "a head would be mixed with parts of others"
SETTINGS: Mapping[str, tuple[str, str | None]] = {
    "hidden_size": ("hidden size", SIZES),
    "intermediate_size": ("feed-forward size", SIZES),
    "num_attention_heads": ("attention heads", HEADS),
    "num_key_value_heads": ("key-value heads", HEADS),
    "head_dim": ("head size", HEADS),
    "hidden_act": ("activation", "weights for one are of no use to another"),
    "rope_theta": ("RoPE theta", None),
    "rope_scaling": ("RoPE scaling", None),
    "partial_rotary_factor": ("RoPE share", None),
    "max_position_embeddings": ("positions", None),
    "sliding_window": ("sliding window", None),
    "rms_norm_eps": ("norm epsilon", None),
}
"""Key of the configuration → its name, and why a difference is an error; None: it is a warning."""
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
"""Names that families of transformers have for the norm's epsilon."""


@dataclass(frozen=True, eq=False)
class Facts:
    """An input called `name`. `settings` has the keys of `SETTINGS`; None is a setting that is not
    known. Tensors of layer i are called ``prefix.i.…``. `embeddings` are those with one row a
    token. `known` says whether edgepack knows the family."""

    name: str
    family: str
    known: bool
    settings: Mapping[str, Any]
    layers: int
    prefix: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    embeddings: tuple[str, ...]
    tied: bool
    rows: int
    licence: str | None
    load_tokenizer: Callable[[], PreTrainedTokenizerFast] | None = field(repr=False)
    runs_as: str = ""
    """The architecture's name in GGUF, "" if it has none."""
    is_gguf: bool = False
    tokenizer_files: tuple[Path, ...] = field(default=(), repr=False)

    @cached_property
    def tokenizer_digest(self) -> str | None:
        """Hex digest of the tokenizer's files and their names; None if it has no files."""
        if not self.tokenizer_files:
            return None
        return combine({path.name: sha256(path) for path in self.tokenizer_files})

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens; None without a tokenizer. Raises `CheckpointError` for a broken one."""
        if self.load_tokenizer is None:
            return None
        return Vocabulary(self.name, self.load_tokenizer(), self.rows)

    @cached_property
    def outside(self) -> Mapping[str, TensorInfo]:
        """Tensors outside the layers."""
        start = self.prefix + "."
        return {name: info for name, info in self.tensors.items() if not name.startswith(start)}

    @cached_property
    def inside(self) -> Mapping[int, Mapping[str, TensorInfo]]:
        """Layer → tensors of it, by their names inside."""
        found: dict[int, dict[str, TensorInfo]] = {}
        start = self.prefix + "."
        for name, info in self.tensors.items():
            number, _, inner = name.removeprefix(start).partition(".")
            layer = whole_number(number) if name.startswith(start) else None
            if layer is not None:
                found.setdefault(layer, {})[inner] = info
        return found


def facts_from(model: Input) -> Facts:
    """The facts of an input; an adapter changes none of them."""
    if model.checkpoint is not None:
        return facts_of(model.name, model.checkpoint)
    assert model.folder is not None
    layers = model.layers
    prefix, count = ("", 0) if layers is None else (layers.prefix, layers.count)
    return facts_by_name(model.name, model.config, model.tensors, model.folder, prefix, count)


def facts_of(name: str, model: Checkpoint) -> Facts:
    """The facts of a checkpoint of a known family."""
    family, d = model.architecture, model.dimensions
    settings = {key: getattr(d, key, None) for key in SETTINGS} | {"hidden_act": family.activation}
    return Facts(
        name,
        family.name,
        known=True,
        settings=settings,
        layers=d.num_hidden_layers,
        prefix=family.layers,
        tensors={s.name: TensorInfo(s.shape, s.dtype) for s in model.specs.values()},
        embeddings=_embeddings(family, model),
        tied=d.tie_word_embeddings,
        rows=d.vocab_size,
        licence=_licence(model),
        load_tokenizer=_loader(model),
        runs_as=family.gguf,
        is_gguf=isinstance(model, GgufCheckpoint),
        tokenizer_files=_tokenizer_files(model.folder)
        if isinstance(model, FolderCheckpoint)
        else (),
    )


def facts_by_name(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    folder: Path,
    prefix: str,
    layers: int,
) -> Facts:
    """The facts of a folder of a family that edgepack does not know: what its config.json says."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope if isinstance(rope, Mapping) else {}
    settings = {key: config.get(key, rope.get(key)) for key in SETTINGS}
    settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"} or None
    settings["rms_norm_eps"] = next((config[key] for key in EPSILONS if key in config), None)
    size = config.get("vocab_size")
    rows = size if isinstance(size, int) else 0
    found = tuple(n for n, info in tensors.items() if info.shape[:1] == (rows,) and prefix not in n)
    return Facts(
        name,
        str(config.get("model_type")),
        known=False,
        settings=settings,
        layers=layers,
        prefix=prefix,
        tensors=tensors,
        embeddings=found,
        tied=bool(config.get("tie_word_embeddings")),
        rows=rows,
        licence=card.licence(folder),
        load_tokenizer=(lambda: from_folder(folder)) if _tokenizer_files(folder) else None,
        tokenizer_files=_tokenizer_files(folder),
    )


def _embeddings(family: Architecture, model: Checkpoint) -> tuple[str, ...]:
    names = [family.outside[role] for role in ROLES if role in family.outside]
    return tuple(name for name in names if name in model.specs)


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    found = {path for pattern in TOKENIZER for path in folder.glob(pattern)}
    return tuple(sorted(path for path in found if path.is_file()))


def _loader(model: Checkpoint) -> Callable[[], PreTrainedTokenizerFast] | None:
    """What loads the tokenizer; None for a folder without one."""
    is_folder = isinstance(model, FolderCheckpoint) and model.folder.is_dir()
    if isinstance(model, FolderCheckpoint) and is_folder and not _tokenizer_files(model.folder):
        return None
    return lambda: model.tokenizer


def _licence(model: Checkpoint) -> str | None:
    if isinstance(model, FolderCheckpoint):
        return card.licence(model.folder)
    entry = model.gguf_metadata().get("general.license")
    return str(entry[0]) if entry else None
