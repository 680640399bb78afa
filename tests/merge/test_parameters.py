"""Gradients, filters and precedence, held to mergekit's values."""

import json
from pathlib import Path

import pytest

from edgepack.errors import RecipeError
from edgepack.merge.methods import get
from edgepack.merge.methods.base import Parameter
from edgepack.merge.parameters import check_names, resolve, value_at

GOLDEN = json.loads((Path(__file__).parent / "golden/parameters.json").read_text())
KINDS = {"float": float, "bool": bool}
NAME = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_mergekits(kind):
    parameter = Parameter("p", KINDS[kind], "")
    tried = [case for case in GOLDEN if case["kind"] == kind]
    assert len(tried) > 50
    for case in tried:
        found = value_at(parameter, case["setting"], case["name"], case["t"], "p")
        assert found == case["value"], case


def weight(*scopes, name=NAME, t=0.0):
    method = get("task_arithmetic")
    named = [(f"scope{number}", scope) for number, scope in enumerate(scopes)]
    return resolve(method, named, name, t, of_model=True)["weight"]


def test_the_narrowest_scope_wins():
    assert weight({"weight": 1}, {"weight": 2}, {"weight": 3}) == 1
    assert weight({}, {"weight": 2}, {"weight": 3}) == 2
    assert weight({}, {}, {"weight": [3, 5]}, t=0.5) == 4


def test_a_scope_whose_filters_do_not_fit_leaves_it_to_the_next():
    filtered = {"weight": [{"filter": "self_attn", "value": 1}]}
    assert weight(filtered, {"weight": 2}) == 2
    assert weight(filtered, {"weight": 2}, name="model.layers.3.self_attn.q_proj.weight") == 1


def test_a_parameter_without_a_value_is_named_with_the_tensor():
    with pytest.raises(RecipeError, match=rf"scope0: task_arithmetic needs weight.*{NAME}"):
        weight({}, {"lambda": 1})


def test_unknown_parameters_are_errors_but_for_mergekits_harmless_ones():
    check_names(get("slerp"), [("parameters", {"int8_mask": True, "t": 1})])
    with pytest.raises(RecipeError, match="no parameter 'wieght'") as caught:
        check_names(get("ties"), [("parameters", {"wieght": 1})])
    assert caught.value.hint == "did you mean weight?"
