"""From a finished folder and a file of notes to an adapter that runtimes load."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch

import edgepack
from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.core.adapters import find, listed, usable
from edgepack.core.artifact import Artifact
from edgepack.errors import EdgepackError
from edgepack.finetune import finetune, training
from edgepack.finetune.stage import RESULT
from edgepack.runtimes.models import Model
from tests.support.adapters import expected, packed
from tests.support.commands import fails, run, write
from tests.support.dying import dies_before
from tests.support.tiny import TEXT, make_model

pytestmark = pytest.mark.slow

NOTES = [{"prompt": "the dog", "completion": "a fox"}, {"prompt": "the rest", "completion": "lazy"}]
QUICK = {"steps": 3, "r": 2, "learning_rate": 1e-2, "batch_size": 2}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "notes.jsonl"
    path.write_text("\n".join(map(json.dumps, NOTES)))
    return path


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def folder(request, tmp_path_factory):
    pytest.importorskip({"gguf": "llama_cpp", "onnx": "onnxruntime"}[request.param])
    compress = {"format": "q4_0", "rank": 4, "factors": "f16", "iterations": 1, "damping": [0.03]}
    place = tmp_path_factory.mktemp(request.param)
    measure = {"export": {"measure": {"tokens": 0}}}
    return packed(place, target=request.param, compress=compress, **measure)


@pytest.mark.parametrize("mode", ["stack", "factors"])
def test_the_runtime_says_what_training_computed(folder, notes, mode):
    tuned = finetune(folder, data=notes, mode=mode, name=mode, **QUICK)
    base = PackedBase.open(folder)
    adapter = files.read(tuned.folder, base)
    tokens = list(range(5, 25))
    path = usable(next(f for f in listed(folder) if f.name == mode), base.target)
    model = Model("tuned", base.file, base.factors, ((path, 1.0),))
    with model.open(64) as runtime:
        logits = runtime.logits(tokens)
    wanted = expected(base, tokens, [(adapter, 1.0)])
    before = expected(base, tokens)
    moved = np.abs(wanted - before).max()
    assert moved > 0.01
    assert np.abs(logits - wanted).max() < 0.15 * max(moved, 1)
    assert tuned.result["curve"]["losses"][-1] < tuned.result["curve"]["losses"][0]
    assert tuned.result["general"]["kl"] > 0
    page = (tuned.folder / "report.md").read_text()
    assert "General text, 1024 tokens" in page


def test_trained_factors_are_a_file_of_the_same_bytes(folder, notes):
    if folder.joinpath("factors.gguf").exists():
        tuned = finetune(folder, data=notes, mode="factors", name="same", **QUICK)
        before, now = folder / "factors.gguf", tuned.folder / "factors.gguf"
        assert 0 <= now.stat().st_size - before.stat().st_size < 400  # the name of the base
        assert now.read_bytes() != before.read_bytes()
        base = PackedBase.open(folder)
        tokens = list(range(5, 25))
        adapter = tuned.folder / "adapter.gguf"
        with Model("a", base.file, now).open(64) as one:
            replaced = one.logits(tokens)
        with Model("b", base.file, before, ((adapter, 1.0),)).open(64) as two:
            added = two.logits(tokens)
        assert np.abs(replaced - added).max() < 0.15  # llama.cpp rounds activations to 8 bits


def test_the_same_run_gives_the_same_files(folder, notes):
    one = finetune(folder, data=notes, name="one", **QUICK)
    two = finetune(folder, data=notes, name="two", **QUICK)
    suffix = "adapter.gguf" if (folder / "base.gguf").exists() else "adapter.onnx_adapter"
    assert (one.folder / suffix).read_bytes() == (two.folder / suffix).read_bytes()


def test_an_adapter_is_replaced_only_with_force(folder, notes):
    finetune(folder, data=notes, name="mine", **QUICK)
    with pytest.raises(EdgepackError, match="mine: exists"):
        finetune(folder, data=notes, name="mine", **QUICK)
    finetune(folder, data=notes, name="mine", force=True, **{**QUICK, "steps": 1})
    assert find(folder, "mine").is_dir()
    foreign = folder / "adapters" / "theirs"
    foreign.mkdir(exist_ok=True)
    with pytest.raises(EdgepackError, match="theirs: exists, and is no adapter"):
        finetune(folder, data=notes, name="theirs", force=True, **QUICK)
    foreign.rmdir()


def test_no_socket_is_opened(folder, notes, monkeypatch):
    """Training and chat with every connection refused."""

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    finetune(folder, data=notes, name="private", **QUICK)
    said = run("chat", folder, "--adapter", "private", "--prompt", "the dog", "--max-tokens", 4)
    assert said.exit_code == 0, said.output


def test_the_folder_stays_whole_and_names_its_adapters(folder, notes):
    finetune(folder, data=notes, name="listed", **QUICK)
    assert not Artifact.open(folder).changed_files()
    shown = run("show", folder)
    assert "listed" in shown.stdout


def test_begun_as_pissa_nothing_changes_before_the_first_step(folder, notes):
    still = {**QUICK, "steps": 1, "learning_rate": 1e-12}
    tuned = finetune(folder, data=notes, name="pissa", init_lora_weights="pissa", **still)
    assert tuned.result["general"]["kl"] < 1e-6
    moving = finetune(folder, data=notes, name="pissa2", init_lora_weights="pissa", **QUICK)
    assert moving.result["general"]["kl"] > 1e-5
    with pytest.raises(EdgepackError, match="eora needs the original"):
        finetune(folder, data=notes, name="eora", init_lora_weights="eora", **QUICK)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--mode", "both"], "finetune.mode"),
        (["--set", "lora_alpa=3"], "finetune.lora_alpa: there is no such key"),
        (["--set", "lora_alpha"], "is not KEY=VALUE"),
        (["--memory", "1MB"], "finetune.memory: 1 MB are too few"),
        (["--name", "../x"], "finetune.name: is a plain name"),
        (["--name", "a b"], "is no name for an adapter"),
        (["--rank", "0"], "finetune.r"),
    ],
)
def test_bad_options_are_one_line(folder, notes, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails("finetune", folder, "--data", notes, *given)[0]


def test_bad_files_are_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is no file" in fails("finetune", folder, "--data", tmp_path / "none.jsonl")[0]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "has nothing to learn" in fails("finetune", folder, "--data", empty)[0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert "bad.jsonl line 2" in fails("finetune", folder, "--data", bad)[0]


def test_one_row_is_enough(folder, tmp_path):
    path = tmp_path / "single.jsonl"
    path.write_text(json.dumps(NOTES[0]))
    result = run("finetune", folder, "--data", path, "--steps", 2, "--rank", 2)
    assert result.exit_code == 0, result.output
    assert "edgepack chat" in result.stdout


def test_a_recipe_does_the_same(tmp_path, notes):
    """The section `finetune` trains on the files of the build, in the build."""
    pytest.importorskip("llama_cpp")
    section = {"data": str(notes), "name": "mine", **QUICK}
    compress = {"format": "q4_0", "rank": 4, "factors": "f16", "iterations": 1, "damping": [0.03]}
    out = packed(tmp_path, compress=compress, export={"measure": {"tokens": 0}}, finetune=section)
    manifest = Artifact.open(out).manifest
    assert manifest["finetuned"]["name"] == "mine"
    assert "adapters/mine/adapter.gguf" in manifest["files"]
    assert PackedBase.open(out).file.name == "base.gguf"
    later = finetune(out, data=notes, name="later", **QUICK)
    one, two = (out / "adapters" / n / "adapter.gguf" for n in ("mine", "later"))
    assert later.folder == two.parent
    assert one.read_bytes() == two.read_bytes()
    eora = write(
        tmp_path / "eora.yaml",
        model="llama",
        compress=compress,
        export={"measure": {"tokens": 0}},
        finetune={**section, "steps": 1, "learning_rate": 1e-12, "init_lora_weights": "eora"},
    )
    edgepack.build(eora, out=tmp_path / "eora")
    base = PackedBase.open(tmp_path / "eora")
    adapter = files.read(tmp_path / "eora" / "adapters" / "mine", base)
    name = "model.layers.0.mlp.up_proj.weight"
    from edgepack.checkpoint import open_checkpoint

    W = open_checkpoint(str(tmp_path / "llama")).tensor(name)
    packed_W = base.weight(name).dense()
    corrected = packed_W + adapter.weights[name].delta()
    assert torch.linalg.norm(W - corrected) < 0.99 * torch.linalg.norm(W - packed_W)


def test_what_an_onnx_graph_has_no_room_for_is_refused_in_the_plan(tmp_path, notes):
    pytest.importorskip("onnxruntime")
    make_model(tmp_path / "llama", "llama", intermediate=128)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    section = {"data": str(notes), **QUICK}
    compress = {"format": "q4_0", "rank": 0}
    recipe = write(tmp_path / "r.yaml", model="llama", compress=compress, finetune=section)
    with pytest.raises(EdgepackError, match="would have no factors of") as refused:
        edgepack.plan(recipe, "onnx")
    assert "export.onnx.adapters: true" in refused.value.hint
    assert edgepack.plan(recipe, "gguf").stages[-1].name == "finetune"
    roomy = {"onnx": {"adapters": True}}
    recipe = write(
        tmp_path / "r.yaml", model="llama", compress=compress, finetune=section, export=roomy
    )
    assert edgepack.plan(recipe, "onnx").stages[-1].name == "finetune"
    section = {**section, "mode": "factors"}
    recipe = write(tmp_path / "r.yaml", model="llama", compress=compress, finetune=section)
    with pytest.raises(EdgepackError, match="no factors L·R to train"):
        edgepack.plan(recipe, "gguf")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(
    tmp_path, notes, monkeypatch
):
    """kill -9 before every few renames: states, the stage, the adapter's folder."""
    compress = {"format": "q4_0", "rank": 4, "factors": "f16", "iterations": 1, "damping": [0.03]}
    out = packed(tmp_path, compress=compress, export={"measure": {"tokens": 0}})
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    options = {**QUICK, "steps": 4, "data": notes, "name": "killed"}
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "whole"))
    whole = finetune(out, **{**options, "name": "whole"})
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cut"))
    operations, kills = 1, 0
    while dies_before(operations, lambda: finetune(out, **options)):
        operations += 2
        kills += 1
        if (out / "adapters" / "killed").exists():  # killed while it cleared up behind itself
            finetune(out, **options, force=True)
            break
    assert kills > 3
    again = out / "adapters" / "killed"
    assert (again / "adapter.gguf").read_bytes() == (whole.folder / "adapter.gguf").read_bytes()
    curves = [json.loads((f / RESULT).read_text())["curve"] for f in (whole.folder, again)]
    assert curves[0]["losses"] == curves[1]["losses"]
    assert not list((out / "adapters").glob(".*"))
