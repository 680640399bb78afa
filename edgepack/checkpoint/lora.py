"""A PEFT adapter as something that is added to a model's weights as they are read.

LoRA with its variants that are a change of weights: rslora, patterns of ranks and alphas, DoRA,
whole modules, rows of single tokens, biases. Adapters for packed models (`edgepack.adapters`) are
stricter: they change linear layers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import passed_over
from edgepack.checkpoint.digests import combine
from edgepack.checkpoint.lora_change import Change, Pair, Shape
from edgepack.checkpoint.peft import CONFIG, OTHER_BASE, PREFIX, WEIGHTS, PeftConfig
from edgepack.checkpoint.shards import (
    READABLE,
    Place,
    full_name,
    header,
    names_in,
    of_language_model,
)
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core.untrusted import quote, shorten, validate
from edgepack.errors import CheckpointError

PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_A.default.weight": "A",
    "lora_B.default.weight": "B",
    "lora_embedding_A": "A of an embedding",
    "lora_embedding_B": "B of an embedding",
    "lora_embedding_A.default": "A of an embedding",
    "lora_embedding_B.default": "B of an embedding",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "lora_B.bias": "bias",
    "lora_B.default.bias": "bias",
    "token_adapter.trainable_tokens_delta": "rows",
    "token_adapter.trainable_tokens_delta.default": "rows",
}
"""End of a tensor's name → what it is of a module."""
HALVES = (("A", "B"), ("A of an embedding", "B of an embedding"))
WRAPPERS = (".modules_to_save.default", ".modules_to_save", ".token_adapter", ".base_layer")
"""Parts of names that PEFT's own modules put between a module and its weight."""
KEPT_ASIDE = ".original_module."
"""What PEFT keeps of a module that it replaces."""
VARIANTS = {
    "target_parameters": "changes parameters that are no linear layers",
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "begins to act at a text (aLoRA), which no weight can do",
    "use_qalora": "is a QALoRA adapter",
    "use_bdlora": "is a BD-LoRA adapter",
    "arrow_config": "routes between several adapters",
    "velora_config": "is a VeLoRA adapter",
    "monteclora_config": "is a MonteCLoRA adapter",
    "kasa_config": "is a KaSA adapter",
}
"""Key of adapter_config.json → what its presence says; none of these is W + s·B·A."""
PLAIN = "merge the adapter with PEFT (merge_and_unload), and name the folder that it writes"
OTHER_MODEL = "the adapter was made for another model"


class _Config(PeftConfig):
    """The fields of adapter_config.json that are read."""

    fan_in_fan_out: bool | None = False
    init_lora_weights: Any = True
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool | None = False
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    use_qalora: Any = None
    use_bdlora: Any = None
    arrow_config: Any = None
    velora_config: Any = None
    monteclora_config: Any = None
    kasa_config: Any = None

    def refusal(self) -> str | None:
        """Why it is no change of weights that edgepack knows, if so."""
        init = str(self.init_lora_weights)
        if self.peft_type != "LORA":
            return f"is of type {quote(self.peft_type)}"
        if init.lower().startswith(OTHER_BASE):
            return f"was initialised with {quote(init)}, which changes the base"
        return next((what for key, what in VARIANTS.items() if getattr(self, key)), None)

    def rows_of(self, module: str) -> list[int] | None:
        """The trained tokens of an embedding."""
        given = self.trainable_token_indices
        if isinstance(given, dict):
            return next((ids for end, ids in given.items() if module.endswith(end)), None)
        return given


@dataclass(frozen=True)
class LoraAdapter:
    """A PEFT folder; `name` is the adapter's in messages. With the model's `architecture`, names
    are those that `Checkpoint.specs` has."""

    folder: Path
    name: str
    revision: str | None = None
    architecture: Architecture | None = None

    @cached_property
    def _files(self) -> SourceFiles:
        return SourceFiles()

    @cached_property
    def config(self) -> _Config:
        """adapter_config.json; raises for adapters that are no change of weights."""
        content = self._files.read_json(self.folder / CONFIG)
        config = validate(
            _Config, content, f"{self.name}: {CONFIG}", CheckpointError, hint="fetch it again"
        )
        if reason := config.refusal():
            raise CheckpointError(f"{self.name}: {reason}", hint=PLAIN)
        return config

    @cached_property
    def _tensors(self) -> Mapping[str, Place]:
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise CheckpointError(
                f"{self.name}: there is no {WEIGHTS}",
                hint="save the adapter with safe_serialization=True",
            )
        return header(path, self._files)

    @cached_property
    def changes(self) -> Mapping[str, Change]:
        """Weight → what becomes of it."""
        return self._read[0]

    @property
    def left_out(self) -> Mapping[str, int]:
        """Parts of a multimodal model that it changes and edgepack does not read."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, Change], Counter[str]]:
        _ = self.config
        modules: dict[str, dict[str, Place]] = {}
        found: dict[str, Change] = {}
        left_out: Counter[str] = Counter()
        for key, place in self._tensors.items():
            self._refuse_unreadable(key, place)
            name = key.removeprefix(PREFIX)
            end = next((end for end in PARTS if name.endswith("." + end)), None)
            if part := passed_over.part_of(name):
                left_out[part] += 1
            elif end is not None:
                modules.setdefault(name.removesuffix("." + end), {})[PARTS[end]] = place
            elif "lora_" in name or not key.startswith(PREFIX):
                raise CheckpointError(
                    f"{self.name}: {shorten(key, 80)} is no part of a plain LoRA", hint=PLAIN
                )
            elif KEPT_ASIDE not in name:
                found[_unwrapped(name)] = Change(whole=place)
        for module, have in modules.items():
            weight, bias = (f"{_unwrapped(module)}.{end}" for end in ("weight", "bias"))
            found[weight] = self._change(module, have, found.get(weight, Change()))
            if "bias" in have:
                scale = self._scale(module, have)
                found[bias] = replace(found.get(bias, Change()), bias=(have["bias"], scale))
        return self._named(found), left_out

    def _named(self, found: Mapping[str, Change]) -> dict[str, Change]:
        """The changes by the names that the model's specs have."""
        if self.architecture is None:
            return dict(found)
        made: dict[str, Change] = {}
        for name, change in found.items():
            inner = full_name(of_language_model(name), self.architecture)
            names = names_in(inner, change.own_shape((1,)), self.architecture)
            made |= {one: change.rows_of(i, len(names)) for i, one in enumerate(names)}
        return made

    def _refuse_unreadable(self, key: str, place: Place) -> None:
        if place.dtype not in READABLE:
            raise CheckpointError(
                f"{self.name}: {shorten(key, 80)} is stored as {place.dtype}",
                hint="edgepack reads " + ", ".join(READABLE),
            )

    def _change(self, module: str, have: Mapping[str, Place], before: Change) -> Change:
        """What a module's tensors do to its weight; `before` holds its base layer, if saved."""
        rows = have.get("rows")
        indices = self.config.rows_of(module) if rows is not None else ()
        halves = {part for part in have if part not in ("rows", "bias", "magnitude")}
        if indices is None or (halves not in map(set, HALVES) and (halves or rows is None)):
            raise CheckpointError(
                f"{self.name}: {shorten(module, 80)} has only {', '.join(sorted(have))}",
                hint="the adapter is incomplete: fetch it again",
            )
        pair = self._pair(module, have) if halves else None
        return Change(before.whole, rows, tuple(indices), pair)

    def _pair(self, module: str, have: Mapping[str, Place]) -> Pair:
        embedding = HALVES[1][0] in have
        A, B = (have[key] for key in HALVES[embedding])
        # PEFT ignores fan_in_fan_out at linear layers, which all families that we know have.
        turned = bool(self.config.fan_in_fan_out) and self.architecture is None
        magnitude = have.get("magnitude")
        if magnitude is None and self.config.use_dora:
            raise CheckpointError(
                f"{self.name}: {shorten(module, 80)} has no lora_magnitude_vector",
                hint="the adapter is incomplete: fetch it again",
            )
        return Pair(A, B, self._scale(module, have), embedding or turned, magnitude)

    def _scale(self, module: str, have: Mapping[str, Place]) -> float:
        A = have.get("A") or have[HALVES[1][0]]
        return self.config.scale(module, A.shape[0] if A.shape else 1)

    def check(
        self, shapes: Mapping[str, Shape], model: str, resizable: tuple[str, ...] = ()
    ) -> dict[str, Shape]:
        """Shapes of the changed weights. Refuses an adapter that changes weights that the model
        does not have, or that have another shape there; those of `resizable` weights may have
        another number of rows."""
        found: dict[str, Shape] = {}
        for name, change in self.changes.items():
            before = shapes.get(name)
            if before is None:
                raise CheckpointError(
                    f"{self.name}: changes {shorten(name, 80)}, which {model} does not have",
                    hint=OTHER_MODEL,
                )
            after = change.shape(before)
            same = after == before or (name in resizable and after and after[1:] == before[1:])
            if not same or after is None:
                own = list(change.own_shape(before))
                raise CheckpointError(
                    f"{self.name}: {shorten(name, 80)} does not fit {model} ({own} for "
                    f"{list(before)})",
                    hint=OTHER_MODEL,
                )
            found[name] = after
        return found

    def apply(self, name: str, W: Tensor) -> Tensor:
        """The weight with the adapter: in W's type, computed in float32."""
        change = self.changes.get(name)
        return W if change is None else change.apply(W, self._files)

    def working_bytes(self, name: str) -> int:
        """Bytes that `apply` needs beside W and the result."""
        change = self.changes.get(name)
        return 0 if change is None else change.working_bytes

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """sha256 of its files."""
        return {name: self._files.sha256(self.folder / name) for name in (CONFIG, WEIGHTS)}

    @property
    def key(self) -> str:
        """Hex digest of its content."""
        return combine(dict(self.digests))


def _unwrapped(name: str) -> str:
    """A name in the model, of a name in the model that PEFT has wrapped."""
    for part in WRAPPERS:
        name = name.replace(f"{part}.", ".").removesuffix(part)
    return name
