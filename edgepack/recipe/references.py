"""Names of models as merges write them: ``path_or_id[@revision][+adapter[@revision]]``.

The grammar is mergekit's, so that its recipes work unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from edgepack.core.untrusted import quote
from edgepack.recipe.fields import check_path

KEYS = {"model", "lora", "override_architecture"}
"""Of a reference that is written as a mapping."""
PARTS = {"path", "revision"}


@dataclass(frozen=True)
class Reference:
    """A model, and perhaps a LoRA adapter that is added to it as it is read. Both may end in
    ``@revision``."""

    model: str
    lora: str | None = None

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"

    def renamed(self, new: Callable[[str], str]) -> Reference:
        """With other names for the model and the adapter."""
        return replace(self, model=new(self.model), lora=new(self.lora) if self.lora else None)


def parse(value: Any) -> Reference:
    """A reference from a text, or from a mapping with `model` and `lora`, each a text or a mapping
    with `path` and `revision`. Raises ValueError."""
    if isinstance(value, Reference):
        return value
    if isinstance(value, str):
        model, *more = value.split("+")
        if len(more) > 1:
            raise ValueError(f"has more than one `+`: {quote(value)}; write model: and lora: apart")
        return Reference(_name(model), _name(more[0]) if more else None)
    if not isinstance(value, Mapping):
        raise ValueError(f"is no name of a model: {quote(value)}")
    if set(value) <= PARTS and "path" in value:
        return Reference(_place(value))
    if not set(value) <= KEYS or "model" not in value:
        raise ValueError("as a mapping has the keys model and lora")
    if value.get("override_architecture") is not None:
        raise ValueError(
            "override_architecture is not supported: a family is what its config.json says"
        )
    lora = value.get("lora")
    return Reference(_place(value["model"]), None if lora is None else _place(lora))


def _place(value: Any) -> str:
    """A path or id, with its revision behind an @."""
    if isinstance(value, str):
        return _name(value)
    if not isinstance(value, Mapping) or not set(value) <= PARTS or "path" not in value:
        raise ValueError("as a mapping has the keys path and revision")
    revision = value.get("revision")
    path = _name(value["path"])
    return path if revision is None else f"{path}@{_name(str(revision))}"


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is no name of a model: {quote(value)}")
    return check_path(value.strip())


ModelReference = Annotated[
    Reference,
    PlainValidator(parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]
