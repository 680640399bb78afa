"""A packed model and its adapters as a new packed model: what ΔW is added to, and how well."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import edgepack
from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.adapters.combine import combine
from edgepack.calibration.moments import weight_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.checkpoint import open_checkpoint
from edgepack.core.artifact import Artifact
from edgepack.core.disk import root
from edgepack.core.weights import quadratic_cost
from edgepack.errors import EdgepackError
from edgepack.formats import get
from edgepack.runtimes.models import Model
from tests.support.adapters import expected, packed, random_adapter
from tests.support.commands import fails, run
from tests.support.ggufs import TOKENS, distance, in_llama_cpp

pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.llama, pytest.mark.slow]
CHANGED = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A packed llama with two adapters, in a cache that has its calibration."""
    out = packed(tmp_path_factory.mktemp("place"))
    base = PackedBase.open(out)
    for number, name in enumerate(("notes", "second")):
        adapter = random_adapter(base, seed=number, size=0.3, names=CHANGED)
        files.write(files.place(out, name), adapter, base, dtype="f32")
    return out


@pytest.fixture(scope="module")
def merged(place):
    return edgepack.merge_adapters(place, [("notes", 1.0)], place.parent / "merged")


def original(place):
    return open_checkpoint(str(place.parent / "llama"))


def test_the_adapters_are_added_to_the_original_weights(place, merged):
    about = merged.manifest["merged"]
    assert about["onto"] == "the original weights"
    assert about["metric"] == "H of the calibration"
    assert about["adapters"] == [{"name": "notes", "scale": 1.0}]
    base, new = PackedBase.open(place), PackedBase.open(merged.folder)
    adapter = files.read(place / "adapters/notes", base)
    assert (
        merged.manifest["weights"].keys()
        == json.loads((place / "manifest.json").read_text())["weights"].keys()
    )
    for name in base.matrices:
        found, before = new.weight(name), base.weight(name)
        if name not in adapter.weights:
            assert torch.equal(found.dense(), before.dense()), name
            continue
        wanted = original(place).tensor(name) + adapter.weights[name].delta()
        assert found.Q.format == "q4_0"
        assert found.rank == 4
        assert torch.dist(found.dense(), wanted) < 0.12 * wanted.norm()
        blind = get("q4_0").quantize(before.dense() + adapter.weights[name].delta()).dequantize()
        assert torch.dist(found.dense(), wanted) < torch.dist(blind, wanted)


def test_it_answers_as_the_adapted_model_without_any_adapter(place, merged):
    base = PackedBase.open(place)
    adapter = files.read(place / "adapters/notes", base)
    wanted = expected(base, TOKENS, [(adapter, 1)])
    plain = in_llama_cpp(base.file, base.factors)
    found = in_llama_cpp(merged.base, merged.factors)
    assert distance(plain, wanted) > 0.3
    assert distance(found, wanted) < 0.75 * distance(plain, wanted)
    results = merged.manifest["measured"]["results"]
    assert set(results) == {"edgepack"}  # KL is that to the original with ΔW
    assert results["edgepack"]["kl_mean"] < 0.1
    report = (merged.folder / "report.md").read_text()
    assert "- merged: notes × 1 (by cat), 4 weights" in report
    assert "onto the original weights, rounded with H of the calibration" in report


def test_merging_a_second_time_keeps_the_first(place, merged):
    """The recipe leads to the model before the first merge: Q + L·R is all there is of it."""
    again = PackedBase.open(merged.folder)
    adapter = random_adapter(again, seed=7, size=0.2, names=("up_proj",))
    files.write(files.place(merged.folder, "more"), adapter, again)
    found = edgepack.merge_adapters(merged.folder, [("more", 1.0)], place.parent / "twice")
    assert found.manifest["merged"]["onto"] == "Q + L·R of the packed model"
    assert any("what was merged before" in line for line in found.manifest["warnings"])
    new, q = PackedBase.open(found.folder), "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(new.weight(q).dense(), again.weight(q).dense())


@pytest.fixture
def moved(place, tmp_path):
    """The packed folder alone, as on another machine: no model and no text beside it."""
    shutil.copytree(place, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A cache that knows no places of sources."""
    here, there = root(), tmp_path / "cache"
    shutil.copytree(here / "calibrate", there / "calibrate")
    monkeypatch.setenv("EDGEPACK_CACHE", str(there))
    return there


def test_without_the_original_it_is_added_to_the_packed_weights(moved, elsewhere, place):
    """Rounded with the kept H; the error in that metric is less than without."""
    found = edgepack.merge_adapters(moved, [("notes", 1.0)], moved.parent / "a")
    about = found.manifest["merged"]
    assert about["onto"] == "Q + L·R of the packed model"
    assert about["metric"] == "H of the calibration"
    assert any("were not found here" in line for line in found.manifest["warnings"])
    assert "calibrate" not in found.manifest["stages"]
    base = PackedBase.open(moved)
    adapter = files.read(moved / "adapters/notes", base)
    kept = elsewhere / Calibrate.name / Artifact.read(moved).manifest["stages"]["calibrate"]
    specs = {name: base.checkpoint.specs[name] for name in adapter.weights}
    H = {name: weight_hessian(kept, spec, tied=True) for name, spec in specs.items()}
    shutil.rmtree(elsewhere / Calibrate.name)
    plain = edgepack.merge_adapters(moved, [("notes", 1.0)], moved.parent / "b")
    assert plain.manifest["merged"]["metric"] == "no H: Q to nearest, L·R as it was"
    assert any("rounded to nearest" in line for line in plain.manifest["warnings"])
    for name, lora in adapter.weights.items():
        before, now = base.weight(name), PackedBase.open(plain.folder).weight(name)
        assert torch.equal(now.L.codes, before.L.codes)
        wanted = get("q4_0").quantize(before.Q.dequantize() + lora.delta())
        assert torch.equal(now.Q.codes, wanted.codes)

    def cost(artifact, name):
        wanted = base.weight(name).dense() + adapter.weights[name].delta()
        E = wanted - PackedBase.open(artifact.folder).weight(name).dense()
        return quadratic_cost(E, H[name].train, H[name].out_train)

    for name in adapter.weights:
        assert cost(found, name) < 0.9 * cost(plain, name)


def test_several_adapters_become_one_and_factors_can_go(place):
    base = PackedBase.open(place)
    given = [("notes", 0.5), ("second", -1.0)]
    found = edgepack.merge_adapters(
        place, given, place.parent / "both", method="svd", rank=2, merge_factors=True
    )
    assert found.factors is None
    assert found.manifest["merged"]["folded_factors"] == 14
    adapters = [(files.read(place / "adapters" / name, base), scale) for name, scale in given]
    adapter = combine(adapters, "svd", rank=2)
    new = PackedBase.open(found.folder)
    for name, lora in adapter.weights.items():
        wanted = original(place).tensor(name) + lora.delta()
        assert torch.dist(new.weight(name).dense(), wanted) < 0.12 * wanted.norm()
        assert new.weight(name).rank == 0


def test_the_command(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("merge-adapter", place, "notes=0.5", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "merged: notes × 0.5 (by cat), 4 weights" in result.stdout
    assert "merged: notes × 0.5" in run("show", tmp_path / "out").stdout
    peft = place / "adapters/notes/peft"
    result = run("merge-adapter", place, f"{peft}=0.5", "--out", tmp_path / "again", "--json")
    assert (
        json.loads(result.stdout)["files"]["base.gguf"]
        == json.loads((tmp_path / "out/manifest.json").read_text())["files"]["base.gguf"]
    )
    assert "already exists" in fails("merge-adapter", place, "notes", "--out", tmp_path / "out")[0]
    assert "has no adapter" in fails("merge-adapter", place, "other", "--out", tmp_path / "x")[0]
    error = fails("merge-adapter", place, "notes", "--out", place, "--force")[0]
    assert "is or holds" in error


def test_adapters_of_another_base_are_refused(place, merged):
    with pytest.raises(EdgepackError, match="was made for"):
        edgepack.merge_adapters(
            merged.folder, [(str(place / "adapters/notes"), 1.0)], place.parent / "x"
        )


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False], ids=["original", "packed"])
def test_an_onnx_folder_is_merged_too(tmp_path, monkeypatch, is_known):
    pytest.importorskip("onnxruntime")
    quiet = {"export": {"measure": {"tokens": 0}}}
    base = PackedBase.open(packed(tmp_path / "a", target="onnx", **quiet))
    adapter = random_adapter(base, size=0.3, names=CHANGED)
    files.write(files.place(base.folder, "notes"), adapter, base)
    if not is_known:
        (tmp_path / "a/llama/config.json").rename(tmp_path / "config.json")
    found = edgepack.merge_adapters(base.folder, [("notes", 1.0)], tmp_path / "out")
    assert found.manifest["merged"]["metric"] == "H of the calibration"
    assert ("original" in found.manifest["merged"]["onto"]) == is_known
    if not is_known:
        (tmp_path / "config.json").rename(tmp_path / "a/llama/config.json")
    wanted = expected(base, TOKENS, [(adapter, 1)])
    with Model("", base.file).open(128) as runtime:
        before = distance(runtime.logits(TOKENS), wanted)
    with Model("", found.base).open(128) as runtime:
        after = distance(runtime.logits(TOKENS), wanted)
    assert after < 0.75 * before
