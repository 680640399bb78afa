"""`--device-profile`: what plan and build say of a device, and of this machine."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import fails, run, write
from tests.support.profiles import content, here
from tests.support.profiles import write as write_profile
from tests.support.tiny import TEXT, make_model

pytestmark = [pytest.mark.llama, pytest.mark.slow]
pytest.importorskip("llama_cpp")

TIMES = {"f32": 0.4, "f16": 0.2, "q8_0": 0.1, "q4_0": 0.05}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    make_model(folder / "llama", intermediate=128, vocab=400)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    return folder


@pytest.fixture
def recipe(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(place / "recipe.yaml", export={"measure": {"tokens": 0}})


def test_plan_prints_the_prediction(recipe, tmp_path):
    path = write_profile(tmp_path / "phone.json", content(TIMES))
    text = run("plan", recipe, "--device-profile", path).stdout
    assert "predicted for adb, Phone 1, aarch64, 8 cores with 1 thread" in text
    assert "decoding: " in text
    facts = json.loads(run("plan", recipe, "--device-profile", path, "--json").stdout)
    assert facts["prediction"]["decode"]["correction"] is None
    assert json.loads(run("plan", recipe, "--json").stdout)["prediction"] is None


@pytest.mark.parametrize("command", ["plan", "build", "compare"])
def test_a_file_that_is_no_profile_is_one_line(recipe, tmp_path, command):
    (tmp_path / "bad.json").write_text('{"schema_version": 1}')
    (tmp_path / "comparison").mkdir()  # it makes its folder before it reads anything
    sizes = ("--sizes", "150kB") if command == "compare" else ()
    error, hint, code = fails(command, recipe, *sizes, "--device-profile", tmp_path / "bad.json")
    assert "bad.json: is no bench.json" in error
    assert "edgepack bench FILE.gguf --all-types" in hint
    assert code == 1


def test_a_build_for_this_machine_ends_with_how_good_the_prediction_was(recipe, tmp_path):
    path = write_profile(tmp_path / "here.json", content(TIMES, device=here()))
    built = run("build", recipe, "--out", "out", "--device-profile", path)
    assert built.exit_code == 0, built.stderr
    text = " ".join(built.stdout.split())
    assert "out, decode 64: predicted" in text
    assert "out, prompt 256: predicted" in text
    assert "tokens/s, measured" in text
    page = (tmp_path / "out/report.md").read_text()
    assert "## Predicted speed" in page
    assert "measured" not in page.partition("## Predicted speed")[2].partition("##")[0]
    assert json.loads(run("show", "out", "--json").stdout)["prediction"]["threads"] == 1
    assert "decoding: " in run("show", "out").stdout


def test_a_build_for_another_device_measures_nothing(recipe, tmp_path):
    path = write_profile(tmp_path / "phone.json", content(TIMES))
    built = run("build", recipe, "--out", "out", "--device-profile", path)
    assert "predicted for adb" in built.stdout
    assert "measured 0" not in built.stdout
    assert "out, decode" not in built.stdout
