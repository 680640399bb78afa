"""Which stages are done again when something changes: exactly those that depend on it."""

import json
import shutil
from pathlib import Path

import pytest

import edgepack
from tests.support.tiny import TEXT, make_model

BASE = {
    "model": "model",
    "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
    "compress": {"format": "q4_0", "rank": 4, "damping": [0.1], "iterations": 1},
    "recover": {"steps": 4},
    "export": {"measure": {"tokens": 0}},
}
SIZED = {**BASE, "compress": {"bits_per_weight": 6, "damping": [0.1], "iterations": 1}}
SELF = {**BASE, "calibrate": {"tokens": 512, "sequence_length": 64}}
SLICED = {
    **BASE,
    "slice": {"width": 32, "orientation": "random", "allow_growth": True, "recover": {"steps": 4}},
}
RECIPES = {"plain": BASE, "sized": SIZED, "self": SELF, "sliced": SLICED}

OF_THE_MODEL = {"check"}
"""Stages that look at the model alone."""
AFTER_CALIBRATE = {"calibrate", "decompose", "recover"}
AFTER_SLICE = {"slice", "rft", *AFTER_CALIBRATE}
EVERYTHING = {"text", *AFTER_CALIBRATE}

# recipe, key of the recipe → new value, stages that are another's then
CHANGES = [
    ("plain", "calibrate.tokens", 1024, AFTER_CALIBRATE),
    ("plain", "calibrate.held_out", 0.2, AFTER_CALIBRATE),
    ("plain", "calibrate.seed", 1, AFTER_CALIBRATE),
    ("plain", "calibrate.sequence_length", 32, AFTER_CALIBRATE),
    ("plain", "calibrate.objective", "guided", AFTER_CALIBRATE),
    ("plain", "compress.format", "q5_0", {"decompose", "recover"}),
    ("plain", "compress.embeddings", "q4_0", {"decompose", "recover"}),
    ("plain", "compress.rank", 8, {"decompose", "recover"}),
    ("plain", "compress.factors", "q8_0", {"decompose", "recover"}),
    ("plain", "compress.overrides", {"*.q_proj": {"rank": 2}}, {"decompose", "recover"}),
    ("plain", "compress.damping", [0.2], {"decompose", "recover"}),
    ("plain", "compress.damping", [0.1, 0.2], {"decompose", "recover"}),
    ("plain", "compress.iterations", 2, {"decompose", "recover"}),
    ("plain", "recover.steps", 8, {"recover"}),
    ("plain", "recover.seed", 1, {"recover"}),
    ("plain", "export.name", "other", set()),
    ("sized", "compress.candidates", ["q4_0", "q8_0"], {"allocate", "decompose", "recover"}),
    ("sized", "compress.damping", [0.2], {"allocate", "decompose", "recover"}),
    ("sized", "compress.ranks", [0, 2], {"allocate"}),
    ("sized", "calibrate.seed", 1, {"allocate", *AFTER_CALIBRATE}),
    ("self", "calibrate.tokens", 1024, EVERYTHING),
    ("self", "calibrate.held_out", 0.2, EVERYTHING),
    ("self", "calibrate.seed", 1, EVERYTHING),
    ("self", "calibrate.sequence_length", 32, EVERYTHING),
    ("self", "calibrate.objective", "guided", AFTER_CALIBRATE),
    ("sliced", "slice.width", 64, AFTER_SLICE),
    ("sliced", "slice.seed", 1, AFTER_SLICE),
    ("sliced", "slice.orientation", "pca", AFTER_SLICE),
    ("sliced", "slice.recover.steps", 8, AFTER_SLICE - {"slice"}),
    ("sliced", "compress.damping", [0.2], {"decompose", "recover"}),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_model(folder / "model", tied=False)
    make_model(folder / "other", tied=False, seed=1)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    return folder


def keys(place: Path, recipe: dict) -> dict[str, str]:
    """Stage → key, as a plan has them."""
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return {stage.name: stage.key for stage in edgepack.plan(path, "gguf").stages}


def changed(recipe: dict, key: str, value: object) -> dict:
    recipe = json.loads(json.dumps(recipe))
    *sections, last = key.split(".")
    inner = recipe
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return recipe


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Stages of `before` whose key is no longer the same."""
    return {name for name, key in before.items() if after.get(name) != key}


@pytest.mark.parametrize(
    ("name", "key", "value", "stages"), CHANGES, ids=[f"{c[0]}-{c[1]}" for c in CHANGES]
)
def test_a_changed_option_is_in_the_keys_of_what_depends_on_it(place, name, key, value, stages):
    recipe = RECIPES[name]
    before, after = keys(place, recipe), keys(place, changed(recipe, key, value))
    assert moved(before, after) == stages
    assert keys(place, recipe) == before


@pytest.mark.parametrize("name", RECIPES)
def test_another_model_is_in_every_key(place, name):
    before = keys(place, RECIPES[name])
    assert moved(before, keys(place, {**RECIPES[name], "model": "other"})) == set(before)


@pytest.mark.parametrize("name", ["plain", "sized", "sliced"])
def test_another_text_is_in_every_key_whatever_its_name(place, name):
    """The file's content counts, not its path."""
    before = keys(place, RECIPES[name])
    kept = (place / "text.txt").read_text()
    try:
        (place / "text.txt").write_text(kept.replace("fox", "cat"))
        assert moved(before, keys(place, RECIPES[name])) == set(before) - OF_THE_MODEL
    finally:
        (place / "text.txt").write_text(kept)
    shutil.copy(place / "text.txt", place / "copy.txt")
    assert keys(place, changed(RECIPES[name], "calibrate.source", "copy.txt")) == before
