"""Write docs/recipe.md: every key of a recipe, from its models. Run after changing one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepack.recipe.sections import Recipe

PAGE = Path(__file__).with_name("recipe.md")


def page() -> str:
    """The page as it should be."""
    schema = Recipe.model_json_schema()
    head = ["# Every key of a recipe", "", "Made by `docs/make_recipe.py`; a test compares them."]
    return "\n".join([*head, *_section("", schema, schema)]) + "\n"


def _section(place: str, node: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """A section as a table of its own keys, then the sections in it."""
    inner: list[tuple[str, dict[str, Any]]] = []
    rows = []
    for key, entry in node["properties"].items():
        section = _reference(entry, schema)
        if section:
            inner.append((f"{place}{key}", section))
        if not section or _may_be_text(entry):
            rows.append(f"| `{key}` | {_default(entry)} | {_text(entry)} |")
    yield from ("", f"## {place.rstrip('.') or 'recipe'}", "", _text(node), "")
    if rows:
        yield from ("| key | default | |", "|---|---|---|", *rows)
    for name, section in inner:
        yield from _section(f"{name}.", section, schema)


def _reference(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key holds, or a list of them; None for a value."""
    if "$ref" in entry:
        found: dict[str, Any] = schema["$defs"][entry["$ref"].rsplit("/", 1)[-1]]
        return found if "properties" in found else None
    inner = [option for key in ("anyOf", "allOf", "oneOf") for option in entry.get(key, [])]
    if isinstance(entry.get("items"), dict):
        inner.append(entry["items"])
    sections = (_reference(option, schema) for option in inner)
    return next((section for section in sections if section is not None), None)


def _may_be_text(entry: dict[str, Any]) -> bool:
    """Whether a key takes a text as well as a section."""
    options = [option for key in ("anyOf", "oneOf") for option in entry.get(key, [])]
    return any(option.get("type") == "string" or _may_be_text(option) for option in options)


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    return "" if value is None else f"`{json.dumps(value)}`".replace("|", "\\|")


def _text(entry: dict[str, Any]) -> str:
    return " ".join(entry.get("description", "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
