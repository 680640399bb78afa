"""Recipes: those of the repository, the schema for editors, and what is wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edgepack.core import plugins
from edgepack.errors import RecipeError
from edgepack.recipe.read import load, parse
from edgepack.recipe.sections import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "edgepack/recipe/examples").glob("*.yaml"))

WRONG = {
    "compres: {}": ("compres: there is no such key", "did you mean compress?"),
    "compress: {formt: q4_0}": ("compress.formt: there is no such key", "did you mean format?"),
    "model: {base: x, adaptor: y}": ("model.adaptor: there", "did you mean adapter?"),
    "model: {base: x}": ("model.adapter: is missing", "PEFT adapter"),
    "model: {adapter: []}": ("model.adapter", "PEFT adapter"),
    "model: 3": ("model: ", "hub id"),
    "zzz: 1": ("zzz: there is no such key", "known keys: calibrate, compress"),
    "compress: {overrides: {'*': {rang: 3}}}": ("overrides.*.rang", "did you mean rank?"),
    "calibrate: {tokens: many}": ("calibrate.tokens: ", "Calibration tokens"),
    "calibrate: {objective: x}": ("should be 'model', 'guided' or", "Fisher matrix"),
    "calibrate: {tokens: 1}": ("greater than or equal to 256, not 1", "Calibration tokens"),
    "compress: [q4_0]": ("compress: this is a section", ""),
    "calibrate:": ("calibrate: this is a section", ""),
    "- model": ("a recipe is a mapping", "model: "),
    "model: [": ("is not valid YAML (line 1)", ""),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_repository_name_real_formats(path):
    compress = load(path).compress
    options = compress.overrides.values()
    used = [compress.format, compress.embeddings, *(o.format for o in options if o.format)]
    assert set(used) <= set(plugins.names("formats"))


@pytest.mark.slow
@pytest.mark.parametrize("text", WRONG, ids=str)
def test_what_is_wrong_is_named_in_one_line_with_a_hint(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "r.yaml")
    message, hint = WRONG[text]
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_a_recipe_that_is_not_there_says_where_it_was_sought(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "none.yaml")
    assert str(tmp_path) in caught.value.hint


def test_the_resolved_recipe_is_the_same_recipe():
    for path in RECIPES:
        recipe = load(path)
        dumped = yaml.safe_dump(recipe.model_dump(exclude_none=True))
        assert parse(yaml.safe_load(dumped)) == recipe


def test_every_key_is_described_in_the_schema():
    schema = Recipe.model_json_schema()
    described = json.dumps(schema)
    assert 'additionalProperties": false' in described
    for section in schema["$defs"].values():
        for name, node in section["properties"].items():
            assert "description" in node or "$ref" in node, name
