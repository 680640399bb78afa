"""constraints.txt pins all that is installed, so that two machines have the same."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgepack.output.software import distributions

ROOT = Path(__file__).parents[2]


def test_everything_that_is_required_is_pinned_to_what_is_installed():
    """For all extras and for development, what is required by what is required included."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = about["project"]["optional-dependencies"]
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions(extras)}
    for text in about["dependency-groups"]["dev"]:
        try:
            one = distribution(Requirement(text).name)
        except PackageNotFoundError:
            continue
        for other in distributions((), start=one):
            installed[canonicalize_name(other.metadata["Name"])] = other
    del installed["edgepack"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines)
    }
    other = {
        name: one.version
        for name, one in installed.items()
        if pinned.get(name) != one.version.partition("+")[0]
    }
    assert other == {}, "pin them in constraints.txt"
    assert {"torch", "onnxruntime", "llama-cpp-python", "pytest"} <= set(installed)
