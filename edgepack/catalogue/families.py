"""What works for a family, asked of the rooms that refuse what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.architectures.base import Architecture
from edgepack.catalogue.published import PUBLISHED, Model
from edgepack.core import plugins
from edgepack.model.sliced import has_code
from edgepack.native import families as native
from edgepack.planning import target
from edgepack.slicing import stage as slicing

Answer = str | None
"""Why not; None: it works."""


@dataclass(frozen=True)
class Capability:
    """Something that can be done with the models of a family."""

    key: str
    title: str
    """Head of its column."""
    about: str
    why_not: Callable[[Architecture], Answer]


def _written(name: str) -> Callable[[Architecture], Answer]:
    """Whether a target can hold a family."""
    return lambda family: target.kind(name).why_not(family)


def _sliced(family: Architecture) -> Answer:
    return slicing.why_not(family, "global")


def _per_block(family: Architecture) -> Answer:
    """The shortcut matrices need a graph, or code for transformers."""
    reason = slicing.why_not(family, "per_block")
    return reason or (None if has_code(family) else target.kind("onnx").why_not(family))


def _anything(_: Architecture) -> Answer:
    """What works on tensors by their names, whatever the family."""
    return None


def _trained(family: Architecture) -> Answer:
    """`finetune` trains what a target packs."""
    packing = (kind for kind in map(target.kind, target.names()) if kind.packs)
    reasons = [kind.why_not(family) for kind in packing]
    return None if None in reasons else reasons[0]


CAPABILITIES = (
    Capability("gguf", "GGUF", "`build --target gguf`, for llama.cpp", _written("gguf")),
    Capability("onnx", "ONNX", "`build --target onnx`, for ONNX Runtime", _written("onnx")),
    Capability(
        "slice",
        "slice",
        "`slice: {method: global}`: the result is of the family",
        _sliced,
    ),
    Capability(
        "per_block",
        "per block",
        "`slice: {method: per_block}`: SliceGPT as published",
        _per_block,
    ),
    Capability("merge", "merge", "`edgepack merge`: several models become one", _anything),
    Capability("tune", "tune", "`edgepack finetune`, on your own examples", _trained),
    Capability(
        "phone", "phone", "edgepack-tune: the app and `edgepack demo` learn notes", native.why_not
    ),
)


@dataclass(frozen=True)
class Family:
    """A row: the family, models of it that are known, and for every capability why it does not
    work (None: it works)."""

    architecture: Architecture
    models: tuple[Model, ...]
    answers: Mapping[str, Answer]

    @property
    def name(self) -> str:
        """config.json's ``model_type``."""
        return self.architecture.name

    @property
    def sizes(self) -> str:
        """Those of its models."""
        ends = dict.fromkeys(one.size for one in (*self.models[:1], *self.models[-1:]))
        return " to ".join(ends)

    def as_json(self) -> dict[str, Any]:
        """As `edgepack models --json` prints it."""
        return {
            "family": self.name,
            "gguf": self.architecture.gguf or None,
            "models": [{"model": m.name, "weights": m.weights} for m in self.models],
            "works": {key: reason is None for key, reason in self.answers.items()},
            "why_not": {key: reason for key, reason in self.answers.items() if reason},
        }


def family_of(architecture: Architecture) -> Family:
    """The row of a family."""
    answers = {one.key: one.why_not(architecture) for one in CAPABILITIES}
    return Family(architecture, PUBLISHED.get(architecture.name, ()), answers)


def families() -> tuple[Family, ...]:
    """All families that edgepack reads, those of other packages included."""
    names = plugins.names("architectures")
    return tuple(family_of(plugins.find("architectures", name)) for name in names)


def find(name: str) -> Family:
    """A family by its name; a `RecipeError` with "did you mean" where there is none."""
    return family_of(plugins.find("architectures", name))
