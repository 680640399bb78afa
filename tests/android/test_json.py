"""The app's JSON, held against Python's."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.android.host import running

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def host(classes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    with running(classes, folder, folder / "files", folder / "cpuinfo") as found:
        yield found


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES, st.booleans())
def test_what_is_written_is_what_was_read(host, value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    written = host.json(text)["value"]
    assert json.loads(written) == value
    assert "\n" not in written
    assert "\u2028" not in written


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text('{}[]",:\\u0123456789abcdef.eE+-truefalsn \t', max_size=30))
def test_what_python_refuses_is_refused(host, text):
    found = host.json(text)
    try:
        value = json.loads(text)
    except ValueError:
        assert found["failure"].startswith("JSON: ")
    else:
        if isinstance(value, float) and math.isinf(value):
            assert found["value"] == "null"
        else:
            assert json.loads(found["value"]) == value


@pytest.mark.parametrize("text", ["[" * 100, "[" * 66 + "]" * 66, '{"a":' * 70 + "1" + "}" * 70])
def test_depth_has_a_bound(host, text):
    assert host.json(text)["failure"] == "JSON: more than 64 levels"


def test_half_a_pair_survives_as_an_escape(host):
    assert host.json('"\\ud83d"')["value"] == '"\\ud83d"'
    assert json.loads(host.json('"😀\\u0000"')["value"]) == "😀\0"
