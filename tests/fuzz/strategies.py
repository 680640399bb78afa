"""Recipes and merges as `edgepack schema` allows them, by hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from edgepack import formats
from edgepack.core import plugins
from edgepack.merge import methods
from edgepack.recipe.merging import Merge
from edgepack.recipe.sections import Recipe

Strategy = st.SearchStrategy[Any]
Names = Mapping[str, Strategy]

FORMATS = st.sampled_from(sorted(plugins.names("formats")))
SIZES = st.sampled_from(["90kB", "120kB", "1 GiB", "50%", "1B", "0.5MB", 150_000])
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)
NUMBERS = st.one_of(st.floats(-2, 2), st.integers(-1, 4))
VALUES = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=3),
    st.lists(st.fixed_dictionaries({"value": NUMBERS}, optional={"filter": PLAIN}), max_size=2),
)
"""Parameters of merge methods: numbers, gradients over depth, and filters."""
MODELS = st.sampled_from(["m", "n", "m.gguf", "m+peft", "first", "none", "../m"])
PARAMETERS = st.dictionaries(
    st.sampled_from(["weight", "density", "t", "normalize", "lambda", "gamma", "select_topk"]),
    VALUES,
    max_size=3,
)
KNOWN: Names = {
    "model": MODELS,
    "base_model": MODELS,
    "source": st.sampled_from(
        ["text.txt", "chats.jsonl", "self", "none.txt", "union", "base", "m"]
    ),
    "text": st.sampled_from(["text.txt", "none.txt"]),
    "data": st.sampled_from(["few.jsonl", "few.json", "text.txt", "none.jsonl"]),
    "validation": st.sampled_from(["few.jsonl", "none.jsonl"]),
    "format": FORMATS,
    "factors": FORMATS,
    "embeddings": FORMATS,
    "head": FORMATS,
    "candidates": st.lists(FORMATS, min_size=1, max_size=3, unique=True),
    "target_size": SIZES,
    "memory": SIZES,
    "merge_method": st.sampled_from(sorted(methods.names())),
    "parameters": PARAMETERS,
    "tokens": st.integers(0, 600),
    "sequence_length": st.sampled_from([1, 16, 64, 256, 4096]),
    "layer_range": st.tuples(st.integers(0, 2), st.integers(0, 3)).map(list),
    "name": st.sampled_from(["first", "x"]),
}
"""Keys whose values would be refused at once if they were any text or number."""


def of_schema(node: Mapping[str, Any], whole: Mapping[str, Any], known: Names) -> Strategy:
    """Values of a JSON schema; those of the keys in `known` are taken from there."""
    if "$ref" in node:
        return of_schema(whole["$defs"][node["$ref"].rsplit("/", 1)[-1]], whole, known)
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    options = [one for key in ("anyOf", "oneOf") for one in node.get(key, ())]
    if options:
        return st.one_of([of_schema(one, whole, known) for one in options])
    kind = node.get("type", "string")
    if isinstance(kind, list):
        return st.one_of([of_schema({**node, "type": one}, whole, known) for one in kind])
    return KINDS[kind](node, whole, known)


def _object(node: Mapping[str, Any], whole: Mapping[str, Any], known: Names) -> Strategy:
    properties = node.get("properties")
    if properties is None:
        inner = node.get("additionalProperties")
        values = of_schema(inner, whole, known) if isinstance(inner, dict) else PLAIN
        return st.dictionaries(st.sampled_from(["*.q_proj", "*", "model.layers.0.*", "x"]), values)
    made = {
        key: st.none() | known[key] if key in known else of_schema(value, whole, known)
        for key, value in properties.items()
    }
    required = {key: known.get(key, made[key]) for key in node.get("required", ())}
    optional = {key: value for key, value in made.items() if key not in required}
    return st.fixed_dictionaries(required, optional=optional)


def _array(node: Mapping[str, Any], whole: Mapping[str, Any], known: Names) -> Strategy:
    if "prefixItems" in node:
        parts = [of_schema(one, whole, known) for one in node["prefixItems"]]
        return st.tuples(*parts).map(list)
    least, most = node.get("minItems", 0), min(node.get("maxItems", 3), 3)
    items = of_schema(node.get("items", {}), whole, known)
    return st.lists(items, min_size=least, max_size=max(least, most))


def _number(node: Mapping[str, Any], *_: Any) -> Strategy:
    return st.floats(
        node.get("minimum", node.get("exclusiveMinimum", 0.0)),
        node.get("maximum", node.get("exclusiveMaximum", 2.0)),
        exclude_min="exclusiveMinimum" in node,
        exclude_max="exclusiveMaximum" in node,
    )


def _integer(node: Mapping[str, Any], *_: Any) -> Strategy:
    step = node.get("multipleOf", 1)
    least = node.get("minimum", node.get("exclusiveMinimum", -1) + 1)
    most = min(node.get("maximum", 1 << 40), node.get("exclusiveMaximum", 1 << 40))
    small = st.integers(-(-least // step), max(-(-least // step), min(most, least + 64) // step))
    return (small | st.integers(-(-least // step), most // step)).map(lambda n: n * step)


KINDS = {
    "object": _object,
    "array": _array,
    "number": _number,
    "integer": _integer,
    "boolean": lambda *_: st.booleans(),
    "string": lambda *_: PLAIN,
    "null": lambda *_: st.none(),
}


def recipes() -> Strategy:
    """Recipes that the schema accepts; most name a model that is there."""
    schema = Recipe.model_json_schema()
    one = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k != "merge"}}
    found = of_schema(one, schema, KNOWN)
    models = st.sampled_from(["m", "m.gguf", {"base": "m", "adapter": "peft"}])
    return st.builds(lambda recipe, model: {"model": model, **_without_none(recipe)}, found, models)


def _without_none(recipe: Any) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "model" and value is not None}


def merges() -> Strategy:
    """Documents of mergekit's kind, one or two."""
    schema = Merge.model_json_schema()
    one = of_schema(schema, schema, KNOWN)
    return st.lists(one, min_size=1, max_size=2)


def texts() -> Strategy:
    """Any text that a file may hold."""
    return st.text(st.characters(codec="utf-8"), max_size=20)


def plain_values() -> Strategy:
    """What YAML and JSON can both hold: no key but text, no number without an end."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    )
    return st.recursive(
        leaves | PLAIN,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4),
        max_leaves=12,
    )


STOCK = st.sampled_from(sorted(formats.stock()))
"""ggml's formats."""
