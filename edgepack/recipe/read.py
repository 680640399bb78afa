"""A recipe from a YAML file or a dict: validated, or refused in one line that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.recipe import plain_yaml
from edgepack.recipe.sections import Recipe

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
        error.hint = error.hint or "`edgepack init` writes a recipe to start from"
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
    _check_bounds(data)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


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


def _explain(error: ValidationError) -> RecipeError:
    """One line for the first thing pydantic found, with the nearest key where one was misspelt."""
    first = error.errors(include_url=False)[0]
    place = ".".join(shorten(str(part), 60) for part in first["loc"]) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _keys(first["loc"][:-1])
        word = shorten(str(first["loc"][-1]), 60)
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "known keys: " + ", ".join(known)
        return RecipeError(f"{place}: there is no such key", hint=hint)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":  # ours, and whole
        reason = first["msg"].removeprefix("Value error, ")
        return RecipeError(f"{place}: {reason}", hint=_node(first["loc"]).get("description"))
    wanted = SECTION if first["type"] == "model_type" else first["msg"].lower()
    message = f"{place}: {wanted}, not {quote(first['input'])}{more}"
    return RecipeError(message, hint=_node(first["loc"]).get("description"))


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at a place in the recipe."""
    return sorted(_node(location).get("properties", {}))


def _node(location: tuple[int | str, ...]) -> dict[str, Any]:
    """The schema of a place in the recipe."""
    schema = Recipe.model_json_schema()
    node: Any = schema
    for part in location:
        if not isinstance(node, dict):  # True: anything may be here
            return {}
        node = node.get("properties", {}).get(str(part)) or node.get("additionalProperties") or {}
        options = [node, *node.get("anyOf", [])]
        reference = next((o["$ref"] for o in options if isinstance(o, dict) and "$ref" in o), None)
        if reference:
            node = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return node if isinstance(node, dict) else {}
