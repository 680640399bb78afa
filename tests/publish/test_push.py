"""`edgepack push` against a stand-in of the hub's endpoints, with huggingface_hub as it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

import edgepack
from edgepack.core.artifact import digest
from tests.merge.recipes import LINEAR
from tests.support.commands import run
from tests.support.hub import READER, served
from tests.support.tiny import make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A merged model of several files."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        make_model(place / name, seed=seed)
    (place / "c.yaml").write_text(yaml.safe_dump(LINEAR))
    edgepack.merge_models(place / "c.yaml", place / "out", shard_size=60_000)
    return place


@pytest.fixture
def out(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    with served() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", found.environment["HF_TOKEN"])
        yield found


def refused(*arguments):
    """The error and the hint, the last two lines."""
    result = run("push", *arguments)
    assert result.exit_code != 0
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return f"{error}\n{hint}"


def on_disk(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_sent_as_it_is_for_its_owner_only(out, hub):
    (out / "notes.txt").write_text("mine")
    result = run("push", "out", "ann/tiny", "--message", "first")
    assert result.exit_code == 0, result.output
    assert f"{hub.address}/ann/tiny/commit/" in result.stdout
    assert "not sent, since edgepack did not write it: notes.txt" in result.stderr
    wanted = on_disk(out)
    del wanted["notes.txt"]
    assert hub.files("ann/tiny") == wanted
    assert hub.repos["ann/tiny"].private
    assert hub.repos["ann/tiny"].commits == [("main", "first")]


def test_a_name_without_an_owner_and_a_branch(out, hub):
    assert run("push", "out", "tiny", "--revision", "v1", "--public").exit_code == 0
    assert hub.files("ann/tiny", "v1") == on_disk(out)
    assert hub.files("ann/tiny") == {}
    assert not hub.repos["ann/tiny"].private
    sent = len(hub.uploads)
    assert run("push", "out", "tiny", "--revision", "v1", "--public").exit_code == 0
    assert len(hub.uploads) == sent
    assert len(hub.repos["ann/tiny"].commits) == 1


def test_dry_run_lists_files_and_asks_nobody(out, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = run("push", "out", "ann/tiny", "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    names = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert names == [*sorted(on_disk(out)), "total"]
    assert "nothing was sent" in result.stdout
    found = json.loads(run("push", "out", "ann/tiny", "--dry-run", "--json").stdout)
    assert found["files"] == {name: len(data) for name, data in on_disk(out).items()}
    assert found["commit"] is None
    assert hub.asked == []


def test_killed_in_the_middle_it_goes_on(out, hub):
    """The hub hangs in the second large file; that one alone is sent again."""
    hub.stall = 2
    command = [sys.executable, "-m", "edgepack", "push", str(out), "ann/tiny"]
    large = len(list(out.glob("*.safetensors")))
    assert large >= 3
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **hub.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert hub.stalled.wait(60)
        end = time.monotonic() + 60
        while len(hub.blobs) < large - 1 and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
    assert hub.repos["ann/tiny"].commits == [], "half a model was shown"
    hub.stall, first = None, list(hub.uploads)
    result = run("push", "out", "ann/tiny")
    assert result.exit_code == 0, result.output
    assert len(first) == large
    assert hub.uploads[large:] == [first[1]]
    assert hub.files("ann/tiny") == on_disk(out)


def test_large_files_are_sent_one_after_the_other_and_ctrl_c_does_not_wait(out, hub, monkeypatch):
    hub.stall = 2
    code = (
        "from edgepack import cli; from edgepack.publish import hub; hub.ALONE = 20_000; cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "push", str(out), "ann/tiny"],
        cwd=ROOT,
        env={**os.environ, **hub.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert hub.stalled.wait(60)
        assert len(hub.uploads) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        said = process.stderr.read()
    assert not hub.over.is_set()
    assert "interrupted: run again to resume" in said
    large = sum(len(data) >= 20_000 for data in on_disk(out).values())
    assert f"2 of {large}: model-00002" in said
    hub.stall = None
    monkeypatch.setattr("edgepack.publish.hub.ALONE", 20_000)
    assert run("push", "out", "ann/tiny").exit_code == 0
    assert hub.uploads[2] == hub.uploads[1]
    assert len(set(hub.uploads)) == len(hub.uploads) - 1
    assert hub.files("ann/tiny") == on_disk(out)


def test_a_changed_file_is_refused_before_anything_is_sent(out, hub):
    path = next(out.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{path.name} is not the file that manifest.json describes" in refused("out", "ann/tiny")
    path.unlink()
    assert f"{path.name} is missing" in refused("out", "ann/tiny")
    assert hub.asked == []


def test_a_folder_of_this_machine_is_refused(out, hub, monkeypatch):
    monkeypatch.setenv("HOME", "/home/annabel")
    path, manifest = out / "config.json", json.loads((out / "manifest.json").read_text())
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_name_or_path": "/home/annabel/models/a"}))
    manifest["files"]["config.json"] = digest(path)
    (out / "manifest.json").write_text(json.dumps(manifest))
    error = refused("out", "ann/tiny")
    assert "config.json: names a folder of this machine" in error
    assert "/home/annabel/models/a" in error
    assert hub.asked == []
    monkeypatch.setenv("HOME", "/home/somebody")
    result = run("push", "out", "ann/tiny", "--dry-run")
    assert "warning: config.json may say where it was made" in result.stderr


def test_what_the_hub_refuses(out, hub, monkeypatch):
    assert "there is no such place" in refused("out", "nobody/tiny")
    for part, status, words in (
        ("preupload", 409, "somebody else changes it at the same time"),
        ("commit", 412, "somebody else changes it at the same time"),
        ("batch", 403, "may not write"),
        ("create", 400, "the hub refuses it"),
        ("validate-yaml", 429, "too many requests"),
    ):
        hub.fail = {part: status}
        assert words in refused("out", "ann/tiny"), part
    hub.fail = {}
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "may not write there" in refused("out", "ann/other")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "does not know the token" in refused("out", "ann/other")


def test_nothing_private_goes_into_the_open(out, hub):
    assert run("push", "out", "ann/tiny", "--public").exit_code == 0
    sent = len(hub.asked)
    assert "everybody can read it" in refused("out", "ann/tiny")
    assert not [path for _, path in hub.asked[sent:] if "preupload" in path]
    assert run("push", "out", "ann/mine").exit_code == 0
    assert "ann/mine stays private" in run("push", "out", "ann/mine", "--public").stderr


def test_without_a_token_or_a_network(out, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("out", "ann/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to the hub failed" in refused("out", "ann/tiny")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none"))
    assert "no token for the hub\nhint: hf auth login" in refused("out", "ann/tiny")


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "ann/x.git", "-x"])
def test_names_that_are_none(out, name):
    result = run("push", "--dry-run", "--", "out", name)
    assert "is no name" in result.stderr


def test_other_folders_are_refused(made, hub, monkeypatch):
    monkeypatch.chdir(made)
    assert "is not an output folder of edgepack" in refused("a", "ann/tiny")
    assert "there is no such folder" in run("push", "none", "ann/tiny").stderr


def test_an_extracted_adapter(made, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = (made / "a", made / "b")
    assert run("extract-lora", *pair, "--out", "lora", "--rank", "4").exit_code == 0
    assert run("push", "lora", "ann/lora").exit_code == 0
    assert hub.files("ann/lora") == on_disk(tmp_path / "lora")
    _, header, _ = hub.files("ann/lora")["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(header) == {"library_name": "peft"}  # no base on the hub to link to
    (tmp_path / "lora/adapter.gguf").write_bytes(b"GGUF")
    assert "adapter.gguf is not the file that extract.json describes" in refused("lora", "ann/lora")
