"""The same recipe gives the same bytes, whoever builds, wherever, and with how many threads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from edgepack.core.safetensors_header import sort_texts
from edgepack.output.environment import differences, environment
from edgepack.verify.files import OF_TRAINING

pytestmark = pytest.mark.slow


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


@pytest.mark.parametrize("kind", ["gguf", "onnx", "checkpoint", "merged"])
def test_two_builds_have_the_same_bytes(built, kind):
    """Two folders, users, HOMEs, caches, languages, time zones, hash seeds, numbers of threads.
    Reports of a training have its speed and memory in them."""
    one, two = files(built.first / "out" / kind), files(built.second / "out" / kind)
    assert set(one) == set(two)
    times = {f"adapters/notes/{name}" for name in OF_TRAINING}
    other = [n for n in one if n not in times and one[n].read_bytes() != two[n].read_bytes()]
    assert other == []
    assert "manifest.json" in one
    assert kind != "gguf" or "adapters/notes/adapter.gguf" in one


def test_texts_of_a_header_have_one_order(tmp_path):
    path = tmp_path / "a.safetensors"
    texts = {f"key {i} {'ü' * i} \x7f\n": str(i) for i in range(8)}
    for order in (texts, dict(reversed(texts.items()))):
        save_file({"b": torch.arange(6.0), "a": torch.ones(2, 2)}, path, metadata=order)
        sort_texts(path)
        header = path.read_bytes()[8:]
        found = json.loads(header[: int.from_bytes(path.read_bytes()[:8], "little")])
        assert list(found["__metadata__"].items()) == sorted(texts.items())
    from safetensors.torch import load_file

    assert torch.equal(load_file(path)["b"], torch.arange(6.0))


def test_the_manifest_says_what_would_change_the_bytes(built):
    stated = json.loads((built.first / "out/gguf/manifest.json").read_text())["environment"]
    here = environment()
    assert differences(stated, here) == []
    assert stated["packages"]["torch"] == torch.__version__
    assert stated["kernels"]["torch"] == torch.backends.cpu.get_cpu_capability()
    older = {
        **stated,
        "code": "0",
        "packages": {**stated["packages"], "numba": "0.1"},
        "kernels": {**stated["kernels"], "torch": "AVX2", "instructions": ["avx", "made-up"]},
    }
    said = "; ".join(differences(older, here))
    assert "edgepack's code is another" in said
    assert "numba 0.1 there" in said
    assert "torch's kernels AVX2 there" in said or here["kernels"]["torch"] == "AVX2"
    assert "-made-up" in said


def test_an_adapter_says_it_too(built):
    path = built.first / "out/gguf/adapters/notes/adapter.json"
    assert differences(json.loads(path.read_text())["about"]["environment"], environment()) == []
