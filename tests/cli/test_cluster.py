"""Addresses at which there is no cluster, and a machine without Ray."""

from __future__ import annotations

import os
import sys

import pytest

from edgepack.cluster.connect import connect
from edgepack.errors import EdgepackError
from tests.support.ray_cluster import AUTHENTICATION


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """Ray reads it once in a process, when it is imported: other tests need it."""
    for name, value in AUTHENTICATION.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1", "--cluster: '127.0.0.1' is no address"),
        ("127.0.0.1:1", "--cluster: nothing answers at 127.0.0.1:1"),
        ("auto", "--cluster auto: this machine is in no Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(monkeypatch, tmp_path, address, message):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EdgepackError) as caught, connect(address):
        pass
    assert str(caught.value).startswith(message)
    assert caught.value.hint


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EdgepackError) as caught, connect("auto"):
        pass
    assert str(caught.value) == "ray is not installed"
    assert caught.value.hint == "pip install 'edgepack[cluster]'"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
