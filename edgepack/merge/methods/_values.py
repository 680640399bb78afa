"""Parameters of methods as data, and values as recipes write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError

Value = float | int | bool


class Required(Enum):
    """The default of a parameter that has none."""

    REQUIRED = "required"


REQUIRED: Final = Required.REQUIRED

KINDS: dict[type, str] = {float: "a number", int: "a whole number", bool: "true or false"}
ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in KINDS}
"""pydantic's conversions, which are mergekit's."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method."""

    name: str
    kind: type[float] | type[int] | type[bool]
    meaning: str
    """One line: what it does."""
    default: Value | Required | None = REQUIRED
    """None: nothing is done where it is not given (`passthrough.scale`)."""
    of_model: bool = False
    """Whether each model has its own value."""
    least: float = -math.inf
    most: float = math.inf

    def read(self, value: object, place: str) -> Value:
        """A value as recipes write it, converted as mergekit does.

        ``1e-5``, which is a text in YAML, is a number; true and false are 1 and 0 where a number is
        asked for, and the other way round. Raises `RecipeError` for what is of another type, not
        finite, or out of range.
        """
        result = _convert(value, self.kind)
        if result is None:
            raise RecipeError(
                f"{place}: {KINDS[self.kind]} is needed, not {quote(value)}",
                hint=f"{self.name}: {self.meaning}",
            )
        if not self.least <= result <= self.most:
            raise RecipeError(
                f"{place}: {result:g} is out of range, {self._range()}",
                hint=f"{self.name}: {self.meaning}",
            )
        return result

    def _range(self) -> str:
        if self.most == math.inf:
            return f"at least {self.least:g}"
        if self.least == -math.inf:
            return f"at most {self.most:g}"
        return f"from {self.least:g} to {self.most:g}"


def _convert(value: object, kind: type) -> Value | None:
    """The value as that type, None where it is none."""
    try:
        result: Value = ADAPTERS[kind].validate_python(value)
    except ValidationError:
        return None
    return result if math.isfinite(result) else None
