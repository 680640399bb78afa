"""Values as recipes write them: converted as mergekit converts them, or refused in one line."""

from __future__ import annotations

import pytest

from edgepack.errors import RecipeError
from edgepack.merge import methods
from edgepack.merge.methods.base import Parameter

NUMBER = Parameter("share", float, "a share", 0.5, least=0, most=1)
COUNT = Parameter("count", int, "a count", 1, least=0)
FLAG = Parameter("flag", bool, "a switch", False)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (NUMBER, "1e-5", 1e-5),
        (NUMBER, 1, 1.0),
        (NUMBER, True, 1.0),
        (COUNT, "7", 7),
        (COUNT, 7.0, 7),
        (FLAG, "true", True),
        (FLAG, "no", False),
        (FLAG, 1, True),
    ],
)
def test_conversions(parameter, value, expected):
    result = parameter.read(value, "parameters")
    assert result == expected
    assert type(result) is parameter.kind


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (NUMBER, "half", "p.share: a number is needed, not 'half'"),
        (NUMBER, None, "p.share: a number is needed, not None"),
        (NUMBER, [0.1, 0.2], "p.share: a number is needed, not"),
        (NUMBER, "inf", "p.share: a number is needed, not 'inf'"),
        (NUMBER, 1.5, "p.share: 1.5 is out of range, from 0 to 1"),
        (COUNT, 1.5, "p.count: a whole number is needed, not 1.5"),
        (COUNT, -1, "p.count: -1 is out of range, at least 0"),
        (FLAG, 2, "p.flag: true or false is needed, not 2"),
    ],
)
def test_refusals(parameter, value, message):
    with pytest.raises(RecipeError) as raised:
        parameter.read(value, f"p.{parameter.name}")
    assert raised.value.message.startswith(message)
    assert "\n" not in raised.value.message
    assert parameter.meaning in raised.value.hint


def test_defaults_are_filled_in_and_the_other_kind_is_left_out():
    ties = methods.get("ties")
    given = {"weight": "0.3", "normalize": False}
    assert ties.complete(given, of_model=True) == {"weight": 0.3, "density": 1.0}
    assert ties.complete(given, of_model=False) == {
        "normalize": False,
        "rescale": False,
        "lambda": 1.0,
        "int8_mask": False,
    }


def test_a_parameter_without_a_default_is_asked_for():
    with pytest.raises(RecipeError, match=r"models\.0: slerp needs t") as raised:
        methods.get("slerp").complete({}, of_model=False, place="models.0")
    assert raised.value.hint == "t: 0 is the base, 1 the other model"


def test_what_is_misspelt_has_a_hint():
    with pytest.raises(RecipeError) as raised:
        methods.get("ties").complete({"densty": 0.5}, of_model=True)
    assert raised.value.hint == "did you mean density?"
    with pytest.raises(RecipeError) as raised:
        methods.get("dare-ties")
    assert raised.value.hint == "did you mean dare_ties?"


def test_passthrough_has_no_scale_unless_it_is_given():
    method = methods.get("passthrough")
    assert method.complete({}, of_model=True) == {}
    assert method.complete({"scale": 0}, of_model=True) == {"scale": 0.0}
