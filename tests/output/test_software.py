"""The bill of software: what it names, and in which form."""

from __future__ import annotations

import json
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgepack.core.artifact import SOFTWARE
from edgepack.output.software import bill, distributions, write

MODEL = {"model": "owner/name", "revision": "abc"}


def test_it_names_all_that_is_required_and_the_libraries_inside():
    components = {
        one["name"]: one
        for target in ("gguf", "onnx", "checkpoint")
        for one in bill(MODEL, target)["components"]
    }
    for name in ("torch", "numpy", "numba", "llvmlite", "gguf", "transformers", "tokenizers"):
        assert components[name]["version"] == version(name)
    if "llama-cpp-python" in components:  # an extra
        assert components["ggml"]["properties"][0]["value"]
        assert components["ggml"]["version"][0].isdigit()
    if "onnxruntime" in components:
        assert "git-commit-id" in components["onnxruntime (native)"]["properties"][0]["value"]
    assert components["numpy"]["licenses"][0]["expression"]
    licensed = [one for one in components.values() if "licenses" in one]
    assert len(licensed) > 0.7 * len(components)
    assert "pytest" not in components


def test_what_is_required_by_what_is_required():
    names = {canonicalize_name(one.metadata["Name"]) for one in distributions(())} | {"edgepack"}
    for one in distributions(()):
        for text in one.requires or ():
            required = Requirement(text)
            if required.marker is None:
                assert canonicalize_name(required.name) in names


def test_its_form_is_that_of_cyclonedx(tmp_path):
    """The required fields of version 1.6 and the values that its schema allows."""
    write(tmp_path, MODEL, "gguf")
    text = (tmp_path / SOFTWARE).read_text()
    found = json.loads(text)
    assert (found["bomFormat"], found["specVersion"], found["version"]) == ("CycloneDX", "1.6", 1)
    kinds = {"application", "library", "machine-learning-model"}
    tools = found["metadata"]["tools"]["components"]
    every = [found["metadata"]["component"], *tools, *found["components"]]
    for one in every:
        assert one["type"] in kinds
        assert one["name"]
        known = {"type", "name", "version", "purl", "licenses", "hashes", "properties"}
        assert set(one) <= known
        assert len(one.get("licenses", ())) <= 1
        assert one.get("purl", "pkg:pypi/").startswith("pkg:pypi/")
    assert tools[0]["name"] == "edgepack"
    assert found["metadata"]["component"]["version"] == "abc"
    assert len(text) < 40_000
    write(tmp_path, MODEL, "gguf")
    assert (tmp_path / SOFTWARE).read_text() == text
