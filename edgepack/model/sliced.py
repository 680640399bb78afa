"""The sliced checkpoint; its dimensions and shapes are known before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import Checkpoint, Dimensions
from edgepack.checkpoint._layout import shape_words, sizes
from edgepack.checkpoint.base import OwnCode
from edgepack.checkpoint.save import shard_of
from edgepack.core.stage import Stage
from edgepack.core.weights import WeightSpec
from edgepack.model.places import places
from edgepack.model.rewritten import Rewritten, untied_specs

MODELING = Path(__file__).with_name("modeling_sliced.py")
SHORTCUT_NAMES = {"attn_shortcut": "attn_shortcut_Q", "ffn_shortcut": "mlp_shortcut_Q"}
"""Role → name inside a block, as in SliceGPT's code."""
SHORTCUT_AFTER = {"attn_output": "attn_shortcut", "ffn_down": "ffn_shortcut"}
"""Role that writes the stream → the shortcut in parallel to it."""
PARTS = {"token_embd": "embeddings", "output": "head", **dict.fromkeys(SHORTCUT_NAMES, "shortcuts")}
"""Role → part of the model; all else is the body."""


def has_code(architecture: Architecture) -> bool:
    """Whether transformers can be told how to load a model of a family that is sliced per block."""
    return f"class Sliced{architecture.class_name}(" in MODELING.read_text(encoding="utf-8")


class Sliced(Rewritten):
    """A model with a narrower residual stream. Its weights are in the folder of `stage` when that
    is done. Its head is untied, because the final norm's gains are merged into it."""

    stage: Stage
    source_stage: Stage
    code: OwnCode | None = None

    @staticmethod
    def globally(base: Checkpoint, width: int, stage: Stage, about: Mapping[str, Any]) -> Sliced:
        """`base` with a hidden size of `width`: a model of its family."""
        dimensions = replace(base.dimensions, hidden_size=width, tie_word_embeddings=False)
        specs = {
            spec.name: _narrow(spec, base.architecture, dimensions, width)
            for spec in untied_specs(base)
        }
        return Sliced._of(base, dimensions, specs, stage, about, _runnable(base.architecture))

    @staticmethod
    def per_block(
        base: Checkpoint, widths: tuple[int, ...], stage: Stage, about: Mapping[str, Any]
    ) -> Sliced:
        """`base` with `widths[k]` columns at place k, and shortcut matrices between the places. The
        hidden size does not change, because norms divide by it."""
        dimensions = replace(base.dimensions, tie_word_embeddings=False)
        family, blocks = base.architecture, dimensions.num_hidden_layers
        where_is = places(family)
        names = {role: SHORTCUT_NAMES[role] for role in where_is.shortcuts}
        architecture = replace(family, block={**family.block, **names})
        specs = {}
        for spec in untied_specs(base):
            where = where_is.place_of(spec.role, spec.block, blocks)
            width = dimensions.hidden_size if where is None else widths[where]
            specs[spec.name] = _narrow(spec, base.architecture, dimensions, width)
            role = SHORTCUT_AFTER.get(spec.role)
            if role in names and spec.block is not None:
                name, start = architecture.hf_name(role, spec.block), where_is.count * spec.block
                shape = tuple(widths[start + offset] for offset in where_is.shortcuts[role])
                specs[name] = replace(spec, name=name, role=role, shape=shape)
        made = Sliced._of(base, dimensions, specs, stage, about, architecture)
        made.code = OwnCode(MODELING, "Sliced", {"sliced_widths": list(widths)})
        return made

    def own_code(self) -> OwnCode | None:  # noqa: D102
        return self.code

    @staticmethod
    def _of(
        base: Checkpoint,
        dimensions: Dimensions,
        specs: Mapping[str, WeightSpec],
        stage: Stage,
        about: Mapping[str, Any],
        architecture: Architecture,
    ) -> Sliced:
        made = Sliced(base, dimensions, specs, {"slice": dict(about), "stage": stage.key})
        made.stage = made.source_stage = stage
        made.architecture = architecture
        return made

    def with_weights_from(self, stage: Stage) -> Sliced:
        """The same model with the weights of a later stage."""
        made = copy(self)
        made.__dict__.pop("_shards", None)
        made.source_stage, made.about = stage, {**self.about, "stage": stage.key}
        return made

    @property
    def counted(self) -> Checkpoint:  # noqa: D102
        return self

    @cached_property
    def _shards(self) -> Mapping[str, str]:
        return shard_of(self.source_stage.folder)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        with safe_open(self.source_stage.folder / self._shards[name], framework="pt") as file:
            value: Tensor = file.get_tensor(name)
        return value.float()

    def weights_by_part(self) -> dict[str, tuple[int, int]]:
        """Numbers of weights of the original and of this model, by part of the model."""
        found: dict[str, tuple[int, int]] = {}
        for side, checkpoint in enumerate((self.original, self)):
            for spec in checkpoint.specs.values():
                part = PARTS.get(spec.role, "body")
                counts = list(found.get(part, (0, 0)))
                counts[side] += spec.numel
                found[part] = counts[0], counts[1]
        return found


def _narrow(
    spec: WeightSpec, architecture: Architecture, dimensions: Dimensions, width: int
) -> WeightSpec:
    words = sizes(architecture, dimensions) | {"hidden": width}
    return replace(spec, shape=tuple(words[word] for word in shape_words(architecture, spec.role)))


def _runnable(architecture: Architecture) -> Architecture:
    """The family that llama.cpp runs the model as. Where llama.cpp assumes that q is as wide as the
    hidden state, that is llama: it computes the same, with biases of q, k and v, if q and k are in
    its rotary order."""
    if not architecture.square_q:
        return architecture
    return replace(architecture, gguf="llama", permute_qk=True, square_q=False)
