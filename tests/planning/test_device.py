"""What a device profile changes in a plan, and what of it stands in the output folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import edgepack
from edgepack import formats
from edgepack.bench import bench
from edgepack.bench.work import work_of as work_of_file
from edgepack.core.artifact import Artifact
from edgepack.errors import EdgepackError, RecipeError
from edgepack.planning.work import work_of
from edgepack.runtimes.models import Model
from tests.support.profiles import DEVICE, content, write
from tests.support.tiny import TEXT, make_model

pytestmark = [pytest.mark.llama, pytest.mark.slow]
pytest.importorskip("llama_cpp")

QUICK = {"damping": [0.1], "iterations": 1}
PLAIN = {"format": "q4_0", "rank": 4, "factors": "f16", **QUICK}
NAMED = {**PLAIN, "overrides": {"*.v_proj": {"format": "q2_0", "rank": 0}}}
SIZED = {"target_size": "150kB", "ranks": [0, 4], "factors": "f16", **QUICK}
TIMES = {"f32": 0.4, "f16": 0.2, "q8_0": 0.1, "q5_0": 0.09, "q4_0": 0.05, "q2_0": 0.5}
"""Nanoseconds a weight."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, a text, and a folder built without a profile."""
    folder = tmp_path_factory.mktemp("device")
    for tied in (True, False):
        make_model(folder / f"tied-{tied}", tied=tied, intermediate=128)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    edgepack.build(recipe(folder, PLAIN), out=folder / "plain")
    return folder


@pytest.fixture(scope="module")
def measured(place):
    """What a real benchmark of that folder says of this machine."""
    found = bench([place / "plain"], threads=(1,), prompts=(16,), decode=8, rounds=1)
    return found.model_dump(mode="json")


def recipe(folder: Path, compress: dict | None, *, tied: bool = False, name: str = "r") -> Path:
    given = {
        "model": f"tied-{tied}",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "export": {"measure": {"tokens": 0}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(given | ({"compress": compress} if compress else {})))
    return path


def profile(folder: Path, *args, **options) -> Path:
    return write(folder / "profile.json", content(*args, **options))


def keys(plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compress", [NAMED, SIZED, None], ids=["named", "sized", "none"])
def test_a_plan_asks_what_its_files_then_ask(place, tied, compress):
    name = f"work-{tied}-{compress and len(compress)}"
    path = recipe(place, compress, tied=tied, name=name)
    out = edgepack.build(path, out=place / name)
    plan = edgepack.plan(path)
    planned, found = work_of(plan.model, plan.formats), work_of_file(Model.from_path(out.folder))
    embedding = next(s for s in plan.model.specs.values() if s.role == "token_embd")
    types = dict(planned.types)
    row = formats.get(plan.formats[embedding.name].Q)
    types[row.name] -= row.nbytes((1, embedding.shape[1]))  # read beside the head
    assert {name: count for name, count in types.items() if count} == found.types
    assert planned.factor_types == found.factor_types
    assert (planned.flops, planned.head) == (found.flops, found.head)
    assert planned.head_type == found.head_type


def test_a_real_benchmark_is_a_profile_and_says_how_good_the_prediction_was(
    place, measured, tmp_path
):
    path = write(tmp_path / "bench.json", measured)
    built = edgepack.build(place / "r.yaml", out=tmp_path / "out", device_profile=path)
    prediction = built.manifest["prediction"]
    assert prediction["device"]["cores"] == measured["device"]["cores"]
    decode = next(t for t in measured["models"][0]["timings"] if t["case"]["kind"] == "decode")
    # its own model corrects it: what was measured is predicted, but for a row of the embedding
    assert prediction["decode"]["tokens_per_second"] == pytest.approx(
        8 / decode["seconds"][0], rel=0.01
    )
    again = bench([built.folder], threads=(1,), prompts=(16,), decode=8, rounds=1, limits=False)
    lines = [line for line in again.remarks if "predicted" in line]
    speed = next(t for t in again.models[0].timings if t.case.kind == "decode").tokens_per_second
    wanted = prediction["decode"]["tokens_per_second"]
    change = round(100 * (speed / wanted - 1))
    sign = "−" if change < 0 else "+"
    assert lines[0] == (
        f"out, decode 8: predicted {wanted:.1f} tokens/s, measured {speed:.1f} "
        f"({sign}{abs(change)} %)"
    )
    assert lines[1].startswith("out, prompt 16: predicted")
    assert Artifact.open(built.folder).manifest == built.manifest
    page = (built.folder / "report.md").read_text()
    assert f"decoding: {wanted:.1f} tokens/s" in page


def test_another_device_is_not_compared(place, tmp_path):
    path = profile(tmp_path, TIMES)
    built = edgepack.build(place / "r.yaml", out=tmp_path / "out", device_profile=path)
    found = bench([built.folder], threads=(1,), prompts=(16,), decode=8, rounds=1, limits=False)
    lines = [line for line in found.remarks if "predicted" in line]
    assert lines == ["out: predicted for another device (adb, Phone 1, aarch64, 8 cores)"]


def test_slow_types_are_no_candidates_and_the_recipe_that_is_kept_says_so(place, tmp_path):
    path = recipe(place, SIZED, name="sized")
    given = profile(tmp_path, TIMES)
    plan = edgepack.plan(path, device_profile=given)
    device = "adb, Phone 1, aarch64, 8 cores"
    left_out = f"compress: left out as slow on {device}: q2_0 (5.6 × the time of q5_0)"
    assert left_out in plan.warnings
    untimed = "compress: kept, as the profile did not time them: iq2_s, iq2_xs"
    assert any(line.startswith(untimed) for line in plan.warnings)
    assert plan.recipe.compress.candidates == [n for n in plan.target.ladder if n != "q2_0"]
    built = edgepack.build(path, out=tmp_path / "out", device_profile=given)
    assert left_out in built.manifest["warnings"]
    assert left_out in (built.folder / "report.md").read_text()
    kept = yaml.safe_load((built.folder / "recipe.yaml").read_text())
    assert "q2_0" not in kept["compress"]["candidates"]
    kept |= {"model": "tied-False", "calibrate": kept["calibrate"] | {"source": "text.txt"}}
    (place / "kept.yaml").write_text(json.dumps(kept))
    assert keys(edgepack.plan(place / "kept.yaml")) == keys(
        edgepack.plan(path, device_profile=given)
    )


def test_a_size_that_only_slow_types_reach_says_how(place, tmp_path):
    small = recipe(place, SIZED | {"target_size": "75kB"}, name="small")
    smallest = edgepack.plan(small, device_profile=profile(tmp_path, TIMES | {"q2_0": 0.03}))
    assert "q2_0" in {fmt.Q for fmt in smallest.formats.values()}
    only = {"candidates": ["q8_0", "q4_0"]}
    with pytest.raises(RecipeError, match="less than the smallest choice") as refused:
        edgepack.plan(recipe(place, SIZED | only | {"target_size": "75kB"}, name="small"))
    assert "slow" not in refused.value.hint
    every = dict.fromkeys(smallest.target.ladder, 0.5) | TIMES
    small = recipe(place, SIZED | {"target_size": "75kB"}, name="small")
    with pytest.raises(RecipeError, match="less than the smallest choice") as refused:
        edgepack.plan(small, device_profile=profile(tmp_path, every))
    assert refused.value.hint.endswith("those that are slow on the device have to be named there")


def test_a_profile_is_in_no_key_but_by_what_it_leaves_out(place, tmp_path):
    fast = profile(tmp_path, TIMES | {"q2_0": 0.03})
    for compress in (SIZED, NAMED):
        path = recipe(place, compress, name="keys")
        assert keys(edgepack.plan(path, device_profile=fast)) == keys(edgepack.plan(path))
    slow = write(tmp_path / "slow.json", content(TIMES))
    sized = recipe(place, SIZED, name="keys")
    before, after = keys(edgepack.plan(sized)), keys(edgepack.plan(sized, device_profile=slow))
    assert {name for name in before if before[name] != after[name]} >= {"allocate"}
    assert before["calibrate"] == after["calibrate"]
    named = recipe(place, NAMED, name="keys")
    assert keys(edgepack.plan(named)) == keys(edgepack.plan(named, device_profile=slow))


@pytest.mark.parametrize(
    ("compress", "key"),
    [
        (NAMED, "compress.overrides.*.v_proj"),
        ({"format": "q2_0", **QUICK}, "compress.format"),
        ({"embeddings": "q2_0", **QUICK}, "compress.embeddings"),
        ({**SIZED, "candidates": ["q2_0", "q8_0"]}, "compress.candidates"),
    ],
)
def test_a_slow_type_that_is_named_stays_with_a_warning(place, tmp_path, compress, key):
    given = profile(tmp_path, TIMES)
    plan = edgepack.plan(recipe(place, compress, name="named"), device_profile=given)
    device = "adb, Phone 1, aarch64, 8 cores"
    wanted = f"{key}: q2_0 takes 10.0 × the time of q4_0, a larger type, on {device}"
    assert wanted in plan.warnings
    assert "q2_0" in {fmt.Q for fmt in plan.formats.values()} | set(
        plan.recipe.compress.candidates or ()
    )


def test_a_named_type_that_was_not_timed_is_said(place, tmp_path):
    path = recipe(place, {"format": "iq4_nl", **QUICK}, name="named")
    plan = edgepack.plan(path, device_profile=profile(tmp_path, TIMES))
    assert "compress: the profile did not time iq4_nl" in plan.warnings
    assert plan.prediction.skipped == "the profile did not time iq4_nl"


def test_a_share_of_the_memory_is_a_size(place, tmp_path):
    device = DEVICE | {"memory": 400_000}
    given = profile(tmp_path, TIMES, device=device)
    share = recipe(place, SIZED | {"target_size": "37.5%"}, name="share")
    plan = edgepack.plan(share, device_profile=given)
    assert plan.recipe.compress.target_size == 150_000
    same = recipe(place, SIZED, name="same")
    assert keys(plan) == keys(edgepack.plan(same, device_profile=given))


def test_a_share_without_a_device_or_its_memory_is_an_error_of_the_plan(place, tmp_path):
    share = recipe(place, SIZED | {"target_size": "40%"}, name="share")
    with pytest.raises(RecipeError) as refused:
        edgepack.plan(share)
    assert refused.value.message == "compress.target_size: 40% is a share of a device's memory"
    assert refused.value.hint.startswith("--device-profile FILE says which")
    device = {key: value for key, value in DEVICE.items() if key != "memory"}
    with pytest.raises(EdgepackError, match="does not say how much it has"):
        edgepack.plan(share, device_profile=profile(tmp_path, TIMES, device=device))


def test_other_targets_get_the_size_but_no_prediction(place, tmp_path):
    device = DEVICE | {"memory": 10**6}
    given = profile(tmp_path, TIMES, device=device)
    path = recipe(place, SIZED | {"target_size": "20%"}, name="onnx")
    plan = edgepack.plan(path, "onnx", device_profile=given)
    assert plan.recipe.compress.target_size == 200_000
    assert plan.recipe.compress.candidates is None
    assert plan.prediction.skipped == "its profile is of GGUF types, not of onnx"


def test_an_emulated_device_is_no_device(place, tmp_path):
    given = profile(tmp_path, TIMES, device=DEVICE | {"emulated": True})
    plan = edgepack.plan(recipe(place, NAMED, name="named"), device_profile=given)
    assert any("emulated" in line for line in plan.warnings)
