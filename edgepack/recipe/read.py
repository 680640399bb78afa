"""A recipe from a YAML file or a dict: validated, or refused in one line that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.recipe import plain_yaml
from edgepack.recipe.merging import Merge
from edgepack.recipe.sections import Recipe

AnyModel = TypeVar("AnyModel", bound=BaseModel)

FIRST = "`edgepack init` writes a recipe to start from"
SECTION = "this is a section, lines of `key: value`"


def load(path: str | Path) -> Recipe:
    """Read a recipe; raises `RecipeError` naming the key at fault."""
    place = shorten(str(path), 120)
    try:
        data = plain_yaml.parse(_read(Path(path), place), place)
        if not isinstance(data, dict):
            raise RecipeError(f"{place}: a recipe is a mapping", hint="start with `model: …`")
        return parse(data)
    except RecipeError as error:
        error.hint = error.hint or FIRST
        raise


def _read(path: Path, place: str) -> str:
    """The text of a recipe's file; a named pipe would wait for a writer for ever."""
    try:
        if path.exists() and not path.is_file() and path.parts[:2] != (path.anchor, "dev"):
            raise RecipeError(f"{place}: is not a file")
        with path.open("rb") as file:
            data = file.read(plain_yaml.MAX_BYTES + 1)
        if len(data) > plain_yaml.MAX_BYTES:
            raise RecipeError(f"{place}: has more than 1 MB, no recipe has")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        hint = f"looked in {shorten(str(path.parent.resolve()), 120)}"
        raise RecipeError(f"{place}: there is no such recipe", hint=hint) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{place}: is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{place}: cannot be read ({reason})") from None


def parse(data: dict[str, Any]) -> Recipe:
    """Validate a recipe given as a dict."""
    return _validate(Recipe, data, "the recipe")


def _validate(model: type[AnyModel], data: Any, place: str) -> AnyModel:
    _check_bounds(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, place) from None


def load_merges(path: str | Path) -> list[Merge]:
    """Read the merges of a file: mergekit's YAML of one or several documents, or a recipe of
    edgepack with a section `merge`. Raises `RecipeError` naming the key at fault."""
    try:
        return _load_merges(Path(path), shorten(str(path), 120))
    except RecipeError as error:
        error.hint = error.hint or "`edgepack init merge-ties` writes a merge to start from"
        raise


def _load_merges(path: Path, place: str) -> list[Merge]:
    documents = plain_yaml.parse_all(_read(path, place), place)
    if not documents or not all(isinstance(data, dict) for data in documents):
        raise RecipeError(f"{place}: a merge is a mapping", hint="start with `merge_method: …`")
    if len(documents) == 1 and "merge" in documents[0]:
        found = parse(documents[0]).merge
        if found is None:
            raise RecipeError(f"{place}: merge is empty", hint="write `merge_method: …` in it")
        return found if isinstance(found, list) else [found]
    return [_validate(Merge, data, "the merge") for data in documents]


def _check_bounds(data: Any) -> None:
    """Refuse values nested or repeated without an end, before anything walks through them."""
    level, count = [data], 0
    for _ in range(plain_yaml.MAX_DEPTH):
        count += len(level)
        if count > plain_yaml.MAX_NODES:
            raise RecipeError(f"the recipe has more than {plain_yaml.MAX_NODES} values")
        level = list(islice(_children(level), plain_yaml.MAX_NODES + 1))
        if not level:
            return
    raise RecipeError("the recipe is nested too deeply")


def _children(values: list[Any]) -> Iterator[Any]:
    """What lies directly in mappings and lists."""
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple | set):
            yield from value


def _explain(error: ValidationError, model: type[BaseModel], whole: str) -> RecipeError:
    """One line for the first thing pydantic found, with the nearest key where one was misspelt."""
    first = _most_telling(error.errors(include_url=False))
    location = tuple(part for part in first["loc"] if not str(part).startswith("<"))
    place = ".".join(shorten(str(part), 60) for part in location) or whole
    if first["type"] == "extra_forbidden":
        known = sorted(_node(model, location[:-1]).get("properties", {}))
        word = shorten(str(location[-1]), 60)
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "known keys: " + ", ".join(known)
        return RecipeError(f"{place}: there is no such key", hint=hint)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":  # ours, and whole
        reason = first["msg"].removeprefix("Value error, ")
        return RecipeError(f"{place}: {reason}", hint=_node(model, location).get("description"))
    if first["type"] == "missing":
        message = f"{place}: is missing{more}"
    else:
        wanted = SECTION if first["type"] == "model_type" else first["msg"].lower()
        message = f"{place}: {wanted}, not {quote(first['input'])}{more}"
    return RecipeError(message, hint=_node(model, location).get("description"))


def _most_telling(errors: list[ErrorDetails]) -> ErrorDetails:
    """The first; of a key that is missing, the misspelt one that may stand in its place."""
    misspelt = (one for one in errors if one["type"] == "extra_forbidden")
    return next(misspelt, errors[0]) if errors[0]["type"] == "missing" else errors[0]


def _node(model: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The schema of a place in the recipe."""
    schema = model.model_json_schema()
    node: Any = schema
    for part in location:
        options = list(_options(node, schema.get("$defs", {})))
        if isinstance(part, int):
            found = [o["items"] for o in options if "items" in o]
        else:
            found = [o["properties"][part] for o in options if part in o.get("properties", {})]
            found += [o["additionalProperties"] for o in options if "additionalProperties" in o]
        node = found[0] if found else {}
    nodes = list(_options(node, schema.get("$defs", {})))
    own = next((one for one in nodes if "properties" in one), {})
    return {**own, **(node if isinstance(node, dict) else {})}


def _options(node: Any, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node, what it refers to, and what it may be one of."""
    if not isinstance(node, dict):  # True: anything may be here
        return
    yield node
    if "$ref" in node:
        yield from _options(known[node["$ref"].rsplit("/", 1)[-1]], known)
    for key in ("anyOf", "oneOf"):
        for option in node.get(key, ()):
            yield from _options(option, known)
