"""A model on the Hub is planned from its headers: the weights stay there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from edgepack.checkpoint import hub, open_checkpoint
from edgepack.checkpoint.hub_headers import open_headers
from edgepack.errors import CheckpointError
from tests.support.hub import Repo, served
from tests.support.tiny import make_model

NAME = "ann/tiny"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[1, 3], ids=["one file", "three files"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    make_model(place, hidden=128, tied=False, shards=request.param)
    return place


@pytest.fixture
def online(folder, tmp_path, monkeypatch):
    """A hub that has the model, and variables of a process that comes here."""
    with served() as found:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        found.repos[NAME] = Repo(private=False, branches={"main": files})
        environment = found.environment | {"HF_HOME": str(tmp_path / "hf")}
        yield found, environment


def call(code, environment, folder):
    """Run code in a process that knows the stand-in only: huggingface_hub reads variables once."""
    return subprocess.run(
        [sys.executable, *code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_recipe_is_written_and_no_weights_are_fetched(folder, online, tmp_path):
    hub, environment = online
    command = ["-m", "edgepack", "init", NAME, "--device", "phone-4gb", "-o", "r.yaml"]
    done = call(command, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["model"] == NAME
    weights = {name: size for name, size in hub.sent.items() if name.endswith(".safetensors")}
    lengths = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert weights.keys() == lengths.keys()
    for name, size in weights.items():
        with (folder / name).open("rb") as file:
            assert size == 8 + int.from_bytes(file.read(8), "little") < lengths[name] / 2
    assert not list(Path(tmp_path / "hf").rglob("*.safetensors"))


@pytest.mark.slow
def test_what_is_in_the_cache_is_read_there_without_the_network(online, tmp_path):
    hub, environment = online
    fetch = f"from huggingface_hub import snapshot_download as s; s({NAME!r})"
    assert call(["-c", fetch], environment, tmp_path).returncode == 0
    hub.asked.clear()
    command = ["-m", "edgepack", "init", NAME, "--device", "laptop"]
    done = call(command, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    assert (tmp_path / "tiny-laptop.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("folder", [1], ids=["one file"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": b"{}"}, "model_type None is not supported"),
        ({"model.safetensors": b"no model at all"}, "is no safetensors file"),
        ({"model.safetensors": b"\xff" * 7 + b"\x7f" + b"x"}, "is no safetensors file"),
        (None, "no such model on the Hub"),
    ],
)
def test_what_cannot_be_read_is_one_line(online, tmp_path, change, message):
    hub, environment = online
    if change is None:
        hub.repos.clear()
    else:
        hub.files(NAME).update(change)
    done = call(["-m", "edgepack", "init", NAME], environment, tmp_path)
    *bars, error, hint = done.stderr.splitlines()  # huggingface_hub draws some
    assert message in error
    assert hint.startswith("hint: ")
    assert "Traceback" not in "".join(bars)
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.slow
def test_a_local_model_is_opened_as_it_is(folder):
    with open_headers(str(folder)) as model:
        other = open_checkpoint(str(folder))
        assert model.specs == other.specs
        assert all(torch.equal(model.tensor(name), other.tensor(name)) for name in model.specs)


def test_an_empty_cache_has_nothing(tmp_path):
    assert hub.cached("nobody/nothing") is None
    with pytest.raises(CheckpointError, match="no such file or folder"), open_headers("no/such/m"):
        pass
