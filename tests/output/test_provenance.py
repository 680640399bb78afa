"""Output folders may be given away: they say what they were made of, and not where that lay."""

import json
import shutil

import pytest
import yaml

import edgepack
from edgepack.core.artifact import Artifact
from tests.support.commands import fails, run
from tests.support.tiny import TEXT, make_model

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model and two texts in folders with telling names."""
    folder = tmp_path_factory.mktemp("home-of-alice")
    make_model(folder / "client-acme" / "model", intermediate=128)
    (folder / "diary").mkdir()
    (folder / "diary" / "june.txt").write_text("\n".join(TEXT * 30))
    (folder / "diary" / "may.txt").write_text("\n".join(reversed(TEXT * 30)))
    return folder


RECIPE = {
    "compress": {"format": "q4_0", "rank": 4, "factors": "f16", "damping": [0.1]},
    "calibrate": {"tokens": 512, "sequence_length": 64},
}


def build(home, folder, target, *, absolute):
    prefix = f"{home}/" if absolute else "../"
    recipe = RECIPE | {
        "model": f"{prefix}client-acme/model",
        "calibrate": RECIPE["calibrate"] | {"source": f"{prefix}diary/june.txt"},
        "export": {"measure": {"text": f"{prefix}diary/may.txt", "tokens": 256, "context": 64}},
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return edgepack.build(folder / "recipe.yaml", target, out=folder / "out").folder


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_nothing_in_the_folder_tells_where_its_sources_lay(home, target, absolute):
    out = build(home, home / f"{target}-{absolute}", target, absolute=absolute)
    files = [path for path in out.rglob("*") if path.is_file()]
    for word in (b"alice", b"client-acme", b"diary"):
        assert [p.name for p in files if word in p.read_bytes()] == []
    manifest = Artifact.open(out).manifest
    assert manifest["model"]["model"] == "model"
    assert manifest["recipe"]["calibrate"]["source"] == "june.txt"
    said = yaml.safe_load((out / "recipe.yaml").read_text())
    assert said["export"]["measure"]["text"] == "may.txt"
    assert said["compress"]["rank"] == 4


@pytest.mark.slow
def test_a_folder_that_moved_is_still_evaluated_against_its_original(home, tmp_path):
    out = build(home, home / "moving", "gguf", absolute=False)
    shutil.move(out, tmp_path / "elsewhere")
    arguments = ["evaluate", tmp_path / "elsewhere", "--tokens", 256, "--context", 64, "--json"]
    found = json.loads(run(*arguments).stdout)
    measured = json.loads((tmp_path / "elsewhere/manifest.json").read_text())["measured"]
    ours = found["models"][str(tmp_path / "elsewhere")]["text"]
    assert found["text"]["name"] == "may.txt"
    assert ours["kl_mean"] == pytest.approx(measured["results"]["edgepack"]["kl_mean"], rel=1e-6)


@pytest.mark.slow
def test_sources_that_are_gone_are_asked_for(home, tmp_path):
    out = build(home, home / "leaving", "gguf", absolute=False)
    away = home / "client-acme" / "away"
    (home / "client-acme" / "model").rename(away)
    try:
        error, hint, code = fails("evaluate", out)
    finally:
        away.rename(home / "client-acme" / "model")
    assert "not to be found" in error
    assert "--reference" in hint
    assert code == 1
