"""The value of a parameter for one tensor: gradients over depth, filters by name, precedence.

The rules are mergekit 0.1.5's, held to its results by ``tests/merge/test_parameters.py``. A list is
a gradient: numbers are interpolated at t between 0 (first layer of a slice) and 1 (its last one);
of true and false, the one that begins at or before t counts. In a list of ``{filter, value}`` the
first counts whose filter is a part of the tensor's name. The first scope that has a value wins: a
source's, its slice's, the merge's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgepack.errors import RecipeError
from edgepack.merge import methods
from edgepack.merge.methods.base import REQUIRED, Method, Parameter, Value

Scope = tuple[str, Mapping[str, Any]]
"""Where parameters stand in the recipe, and what stands there."""
IGNORED = frozenset({"int8_mask"})
"""Parameters of mergekit that change no result, so that recipes may name them with any method."""
OLD = frozenset({"embed_slerp"})
"""Parameters that recipes on the hub still have, and mergekit has not any more."""


def value_at(parameter: Parameter, setting: Any, name: str, t: float, place: str) -> Value | None:
    """The value of a setting for the tensor `name` at depth `t`; None if no filter fits."""
    conditions = [setting] if isinstance(setting, Mapping) else setting
    if not isinstance(conditions, Sequence) or isinstance(conditions, str):
        return parameter.read(setting, place)
    if not isinstance(conditions[0], Mapping):
        return _at([parameter.read(value, place) for value in conditions], parameter, t, place)
    for condition in conditions:
        wanted = condition.get("filter")
        if wanted in (None, "*") or wanted in name:
            return value_at(parameter, condition["value"], name, t, place)
    return None


def _at(values: Sequence[Value], parameter: Parameter, t: float, place: str) -> Value:
    """A gradient's value at t from 0 to 1."""
    position = t * (len(values) - 1)
    if parameter.kind is bool:
        return values[int(position)]
    low = int(position)
    high, share = min(len(values) - 1, low + 1), position - low
    return parameter.read((1 - share) * values[low] + share * values[high], place)


def resolve(
    method: Method, scopes: Iterable[Scope], name: str, t: float, *, of_model: bool
) -> dict[str, Value]:
    """Every parameter of a model (`of_model`), or of the whole, for one tensor, with defaults.

    `scopes` come in the order of precedence. Raises `RecipeError` for a value that is out of range,
    and for a parameter without a default that no scope has for this tensor.
    """
    kept, result = list(scopes), {}
    for parameter in method.parameters:
        if parameter.of_model == of_model:
            value = _first(parameter, kept, name, t)
            if value is None and parameter.default is REQUIRED:
                raise RecipeError(
                    f"{_places(kept)}: {method.name} needs {parameter.name}, and there is none for "
                    f"{name}",
                    hint=f"{parameter.name}: {parameter.meaning}",
                )
            if value is not None:
                result[parameter.name] = value
            elif isinstance(parameter.default, bool | int | float):
                result[parameter.name] = parameter.default
    return result


def _first(parameter: Parameter, scopes: Iterable[Scope], name: str, t: float) -> Value | None:
    for place, settings in scopes:
        if parameter.name in settings:
            where = f"{place}.{parameter.name}"
            value = value_at(parameter, settings[parameter.name], name, t, where)
            if value is not None:
                return value
    return None


def _places(scopes: Sequence[Scope]) -> str:
    """Where a parameter could stand that stands nowhere: the narrowest place."""
    return scopes[0][0] if scopes else "parameters"


def check_names(method: Method, scopes: Iterable[Scope]) -> None:
    """Refuse parameters that no method has; it may be a misspelt one."""
    for place, settings in scopes:
        for name in settings:
            if name not in IGNORED and not (_is_idle(method, name) and _is_known(name)):
                method.parameter(name, place)


def idle(method: Method, scopes: Iterable[Scope]) -> str | None:
    """A remark about parameters of other methods, which change nothing, as in mergekit: recipes
    keep them when only their method is changed. None if there are none."""
    given = dict.fromkeys(name for _, settings in scopes for name in settings)
    found = [name for name in given if name not in IGNORED and _is_idle(method, name)]
    if not any(_is_known(name) for name in found):
        return None
    names = ", ".join(name for name in found if _is_known(name))
    return f"{method.name} has no {names}; what the recipe says of it changes nothing"


def _is_idle(method: Method, name: str) -> bool:
    return all(parameter.name != name for parameter in method.parameters)


def _is_known(name: str) -> bool:
    """Whether some method has it, or once had it."""
    every = (methods.get(one) for one in methods.names())
    return name in OLD or any(not _is_idle(method, name) for method in every)


def unused_filters(scopes: Iterable[Scope], names: Iterable[str]) -> list[str]:
    """Filters that are a part of no tensor's name: misspelt, or of another family."""
    given: dict[str, None] = {}
    for _, settings in scopes:
        for setting in settings.values():
            conditions = setting if isinstance(setting, list) else [setting]
            wanted = (one.get("filter") for one in conditions if isinstance(one, Mapping))
            given |= dict.fromkeys(word for word in wanted if word not in (None, "*"))
    every = list(names)
    return [word for word in given if not any(word in name for name in every)]
