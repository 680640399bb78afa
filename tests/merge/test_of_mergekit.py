"""Recipes as mergekit's documentation has them, of every kind: planned, or refused in one line."""

import pytest
import yaml

from edgepack.errors import EdgepackError
from edgepack.merge.documents import plan_merges
from edgepack.merge.stage import Options
from edgepack.recipe.read import load_merges
from tests.support.tiny import make_model

GRADIENT = """
slices:
  - sources:
      - {model: org/a, layer_range: [0, 4]}
      - {model: org/b, layer_range: [0, 4]}
merge_method: slerp
base_model: org/a
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5 # for the rest
dtype: float16
"""
GRADIENTS_OF_MODELS = """
models:
  - {model: org/a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
  - {model: org/b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
  - model: org/c
    parameters:
      density: 0.33
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0
merge_method: ties
base_model: org/base
parameters: {normalize: true, int8_mask: true}
dtype: float16
"""
NO_PARAMETERS = (
    "models: [{model: org/a}, {model: org/b}]\nmerge_method: arcee_fusion\nbase_model: org/a"
)
STACK = """
slices:
  - sources:
    - model: org/a
      layer_range: [0, 3]
  - sources:
    - model: org/b
      layer_range: [2, 4]
merge_method: passthrough
dtype: float16
"""
ONE_SLICE = STACK.partition("  - sources:\n    - model: org/b")[0] + "merge_method: passthrough"
STAGES = """
name: first
merge_method: linear
models: [{model: org/a}, {model: org/b}]
parameters: {weight: 0.5}
---
name: second
merge_method: slerp
base_model: first # which is no model of it
models: [{model: org/c}]
parameters: {t: 0.5}
---
merge_method: dare_ties
base_model: org/base
models:
  - {model: second, parameters: {density: 0.6, weight: 0.5}}
  - {model: org/b, parameters: {density: 0.8, weight: 0.5}}
"""
LAYERS = {"stack": 5, "one slice": 3}
TAKEN = {
    "gradient": GRADIENT,
    "gradients of models": GRADIENTS_OF_MODELS,
    "no parameters": NO_PARAMETERS,
    "stack": STACK,
    "one slice": ONE_SLICE,
    "stages": STAGES,
}
MODELS = (
    "models: [{model: org/a, parameters: {weight: 1}}]\nmerge_method: ties\nbase_model: org/base\n"
)
REFUSED = {
    "base_model: org/a\ngate_mode: hidden\nexperts: [{source_model: org/b}]": "gate_mode: mixtures",
    "genome: {models: [org/a], merge_method: ties}\ntasks: []": "genome: searches",
    "merge_method: linear\nmodules: {text: {models: []}}": "modules: models of several parts",
    MODELS + "out_path: ./x": "out_path: a result is called by `name`",
    MODELS + "align_weights: zipit": "align_weights: there is no such key",
    MODELS.replace("ties", "cabs"): "merge_method: there is no 'cabs'",
    MODELS + "parameters: {geodesic: true}": "parameters: ties has no parameter 'geodesic'",
    "models: [{model: org/a, lora: org/l}]\nmerge_method: slerp": "models.0: lora: write model:",
    "models: [{model: org/a}]\nmetric_method: scale": "metric_method: there is no such key",
    "merge_method: slerp\n...\n": "give one of models and slices",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "c", "base")):
        make_model(folder / "org" / name, layers=4, hidden=32, intermediate=32, seed=seed)
    return folder


def planned(place, tmp_path, text):
    path = tmp_path / "config.yml"
    path.write_text(text)
    return plan_merges(load_merges(path), place, Options())


@pytest.mark.parametrize("kind", TAKEN)
def test_it_is_taken_as_it_is(place, tmp_path, kind):
    stage = planned(place, tmp_path, TAKEN[kind])
    assert len(stage.layout.origins) == LAYERS.get(kind, 4)
    assert stage.method.name == list(yaml.safe_load_all(TAKEN[kind]))[-1]["merge_method"]


@pytest.mark.parametrize("text", REFUSED)
def test_it_is_refused_in_one_line(place, tmp_path, text):
    with pytest.raises(EdgepackError) as error:
        planned(place, tmp_path, text)
    assert REFUSED[text] in str(error.value)
    assert "\n" not in str(error.value)
