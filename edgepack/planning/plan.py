"""The plan: everything that a build will do. Stages add themselves to it, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.save import dtype_of
from edgepack.core.accelerator import CPU
from edgepack.core.speeds import Prediction
from edgepack.core.stage import Stage
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.device_profile.prediction import predict
from edgepack.device_profile.profile import DeviceProfile
from edgepack.errors import RecipeError
from edgepack.model.open import open_model
from edgepack.model.rewritten import Rewritten
from edgepack.model.rotation import Rotated
from edgepack.model.stream import Tokens
from edgepack.planning.formats import Fallback, Given, factor_bytes, weight_bytes
from edgepack.planning.target import Target, get
from edgepack.planning.work import work_of
from edgepack.recipe.sections import Recipe

BLOCKS, VECTORS = "blocks", "norms and biases"
PARTS = {
    "token_embd": "embeddings",
    "position_embd": "embeddings",
    "per_layer_token_embd": "embeddings",
    "per_layer_model_proj": "embeddings",
    "output": "head",
    "attn_shortcut": "shortcuts",
    "ffn_shortcut": "shortcuts",
}
"""Role → part of the model in the ledger; other matrices are the blocks'."""
GGUF = "gguf"
"""The target whose types are those that a device profile has times of."""
READS = ("edgepack.checkpoint", "edgepack.architectures")
"""The code that reads models."""
PROCESS = 1150 << 20
"""Bytes of Python, torch, transformers, numba and what the allocator keeps."""

AnyStage = TypeVar("AnyStage", bound=Stage)


class Text(Protocol):
    """Where calibration tokens come from; `key` changes with its content."""

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def tokens(self) -> Tokens: ...  # noqa: D102


class Chosen(Protocol):
    """Where formats come from: the recipe, or costs that a stage measures."""

    @property
    def formats(self) -> Mapping[str, WeightFormat]: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """Everything `build` will do, and what will come of it.

    `original` is the model as it was found: it writes the text, and every KL is measured from it.
    `model` is the one that is packed: merged, sliced, rotated, padded.
    """

    recipe: Recipe
    target: Target
    base: Path
    original: Checkpoint
    model: Checkpoint
    stages: tuple[Stage, ...] = ()
    """In the order in which they run; the last two are export and measure."""
    text: Text | None = None
    """The calibration text, where a stage needs one."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Key of the recipe that names a text → sha256 of what the plan found in it."""
    chosen: Chosen = field(default_factory=Given)
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    """Warnings that were known before anything ran."""
    profile: DeviceProfile | None = None
    """The device that the files are for, if that is known."""
    device: torch.device = CPU
    """Where this machine computes."""

    def adding(self, *stages: Stage, notes: Sequence[str] = ()) -> Plan:
        """The plan with more stages at its end."""
        return replace(self, stages=(*self.stages, *stages), notes=(*self.notes, *notes))

    def find(self, kind: type[AnyStage]) -> AnyStage | None:
        """The stage of a kind, if the plan has one."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        """How every matrix will be stored: a guess, until what a size buys was measured."""
        return self.chosen.formats

    @property
    def warnings(self) -> list[str]:
        """All that is to be said: of the recipe, of the formats, of what finished stages found."""
        remarks = self.target.remarks(self.model, self.formats)
        found = (line for stage in self.stages if stage.is_done for line in stage.warnings())
        return [*self.notes, *remarks, *found]

    @property
    def facts(self) -> dict[str, Any]:
        """What its stages say of themselves, as far as it is known."""
        return {key: value for stage in self.stages for key, value in stage.facts().items()}

    @property
    def memory(self) -> int:
        """Expected peak resident bytes of the build: that of its largest stage."""
        most = max((stage.memory() for stage in self.stages), default=0)
        return PROCESS + rotation_bytes(self.model) + most

    @property
    def prediction(self) -> Prediction | None:
        """How fast the files will be on the device of the profile, if there is one."""
        if self.profile is None:
            return None
        if self.target.name != GGUF:
            device, threads = self.profile.device, self.profile.threads
            reason = f"its profile is of GGUF types, not of {self.target.name}"
            return Prediction(device=device, threads=threads, skipped=reason)
        return predict(work_of(self.model, self.formats), self.profile)

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of tensors in the files to come, by part of the model."""
        sizes = dict.fromkeys((BLOCKS, *PARTS.values(), VECTORS, "factors"), 0)
        formats = self.formats
        for spec in self.model.specs.values():
            fmt = formats.get(spec.name)
            part = VECTORS if fmt is None else PARTS.get(spec.role, BLOCKS)
            sizes[part] += self._nbytes(spec, fmt)
            sizes["factors"] += factor_bytes(spec, fmt) if fmt else 0
        return {part: size for part, size in sizes.items() if size}

    def _nbytes(self, spec: WeightSpec, fmt: WeightFormat | None) -> int:
        """Bytes of a weight, without its factors."""
        if not self.target.packs:
            return spec.numel * dtype_of(spec).itemsize
        return weight_bytes(spec, fmt)

    def bits_per_weight(self, *, blocks_only: bool) -> float:
        """Bits stored (Q, scales, L and R) per element of the matrices."""
        known = self.model.counted.specs
        bits = count = 0
        for name, fmt in self.formats.items():
            spec = self.model.specs[name]
            if blocks_only and spec.block is None:
                continue
            bits += 8 * (self._nbytes(spec, fmt) + factor_bytes(spec, fmt))
            count += known[name].numel
        return bits / count


def open_plan(
    recipe: Recipe,
    target: str,
    base: Path,
    profile: DeviceProfile | None = None,
    opened: Callable[[], Checkpoint] | None = None,
    device: torch.device = CPU,
) -> Plan:
    """A plan without stages: the model is open, and the target can hold it. `opened` gives the
    model of a recipe that makes it of others, or one that is open already; `device` computes."""
    kind = get(target, recipe.export)
    if recipe.model is None and opened is None:
        raise RecipeError("model: is missing", hint="write `model: NAME` at the top of the recipe")
    kind.check_recipe(recipe)
    if opened is not None:
        original = opened()
    else:
        assert recipe.model is not None
        original = open_model(recipe.model, base)
    _ = original.tokenizer, original.generation_config()  # what is wrong with them is found here
    notes = (*original.warnings(), *kind.check_model(original))
    return Plan(recipe, kind, base, original, original, notes=notes, profile=profile, device=device)


def rotation_bytes(model: Checkpoint) -> int:
    """Bytes of the matrix that every weight of a rotated model is multiplied by as it is read."""
    if not any(layer.stream for layer in layers(model) if isinstance(layer, Rotated)):
        return 0
    return 8 * model.dimensions.hidden_size**2


def layers(model: Checkpoint) -> Iterator[Checkpoint]:
    """A model, the one that it is made of, and so on."""
    yield model
    while isinstance(model, Rewritten):
        model = model.base
        yield model
