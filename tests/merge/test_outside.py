"""A tokenizer of a model that is not merged, and models of the hub."""

import json
import shutil

import huggingface_hub
import pytest
import torch
import yaml

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.errors import EdgepackError
from tests.merge.recipes import LINEAR, made, plan, tensors
from tests.support.commands import fails, run
from tests.support.tiny import make_model, make_tokenizer

COMMIT = "a1" * 20
EMBEDDING = "model.embed_tokens.weight"
ADDED = "<|tool|>"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two models, and a third one, with other tokens, whose weights are not there."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    make_model(tmp_path / "else/where", seed=2)
    tokenizer = make_tokenizer(vocab=450)
    tokenizer.add_tokens(ADDED)
    tokenizer.eos_token = tokenizer.pad_token = ADDED
    tokenizer.save_pretrained(tmp_path / "else/where")
    config = json.loads((tmp_path / "else/where/config.json").read_text())
    ids = {"eos_token_id": tokenizer.eos_token_id, "vocab_size": 480}
    (tmp_path / "else/where/config.json").write_text(json.dumps(config | ids))
    (tmp_path / "else/where/model.safetensors").unlink()
    return tmp_path


def recipe(source="else/where", **more):
    return LINEAR | {"tokenizer_source": source, "dtype": "float32"} | more


def test_rows_follow_the_tokens_of_the_other_model(place):
    stage = plan(place, recipe())
    found, a, b = made(stage), tensors(place / "a"), tensors(place / "b")
    theirs, ours = from_folder(place / "else/where"), make_tokenizer()
    assert found[EMBEDDING].shape[0] == 480, "its padding is kept"
    shared = [token for token in theirs.get_vocab() if token in ours.get_vocab()]
    assert len(shared) == 450
    for token in shared:
        row = ours.get_vocab()[token]
        wanted = 0.25 * a[EMBEDDING][row].float() + 0.75 * b[EMBEDDING][row].float()
        torch.testing.assert_close(found[EMBEDDING][theirs.get_vocab()[token]], wanted)
    mean = found[EMBEDDING][:450].mean(0)
    torch.testing.assert_close(found[EMBEDDING][450], mean, atol=1e-3, rtol=0)
    assert any(f"no model has a row for '{ADDED}'" in note for note in stage.notes)
    result = open_checkpoint(str(stage.folder))
    assert result.tokenizer.get_vocab() == theirs.get_vocab()
    config = json.loads((stage.folder / "config.json").read_text())
    assert config["eos_token_id"] == theirs.get_vocab()[ADDED]
    assert config["vocab_size"] == 480


def test_a_union_of_options_says_the_same(place):
    whole = recipe() | {"tokenizer_source": None, "tokenizer": {"source": "else/where"}}
    assert torch.equal(made(plan(place, whole))[EMBEDDING], made(plan(place, recipe()))[EMBEDDING])


def test_the_result_depends_on_its_content_and_not_on_its_place(place):
    before = plan(place, recipe()).key
    shutil.copytree(place / "else/where", place / "where")
    assert plan(place, recipe("where")).key == before
    tokenizer = from_folder(place / "where")
    tokenizer.add_tokens("<|more|>")
    tokenizer.save_pretrained(place / "where")
    assert plan(place, recipe("where")).key != before


def test_the_output_does_not_name_the_folder(place):
    (place / "c.yaml").write_text(yaml.safe_dump(recipe()))
    shown = run("merge", "c.yaml", "--check").stdout
    assert [line for line in shown.splitlines() if line.split()[:3] == ["tokenizer", "of", "where"]]
    assert run("merge", "c.yaml", "out").exit_code == 0
    manifest = json.loads((place / "out/manifest.json").read_text())
    assert manifest["recipe"]["merge"]["tokenizer_source"] == "where"
    assert "merge.where" in manifest["sources"]
    assert "tokenizer.json" in manifest["model"]["sources"]["where"]["files"]
    assert "else" not in (place / "out/mergekit_config.yml").read_text()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "tokenizer_source: nowhere/at/all: there is no such folder"),
        ("a/model.safetensors", "tokenizer_source: a/model.safetensors: is no folder"),
        ("empty", "tokenizer_source: empty has no tokenizer"),
    ],
)
def test_what_has_no_tokenizer_is_refused_by_name(place, source, message):
    (place / "empty").mkdir()
    (place / "c.yaml").write_text(yaml.safe_dump(recipe(source)))
    error, hint, code = fails("merge", "c.yaml", "out")
    assert message in error
    assert "tokenizer.json" in hint
    assert code == 2


def test_another_merge_of_the_file_has_no_tokenizer_of_its_own(place):
    first = LINEAR | {"name": "first"}
    second = recipe("first", name="second")
    third = {"merge_method": "linear", "models": [{"model": "first", "parameters": {"weight": 1}}]}
    third["models"].append({"model": "second", "parameters": {"weight": 1}})
    with pytest.raises(EdgepackError, match="'first' is another merge, and no model of this one"):
        plan(place, first, second, third)


@pytest.fixture
def hub(place, monkeypatch):
    """The hub's cache with both models and the tokenizer, offline."""
    for name in ("a", "b", "else/where"):
        repository = place / f"hub/models--ann--{name.rpartition('/')[2]}"
        shutil.copytree(place / name, repository / "snapshots" / COMMIT)
        shutil.rmtree(place / name)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place


def of_hub(**more):
    text = json.dumps(LINEAR).replace('"a"', '"ann/a"').replace('"b"', f'"ann/b@{COMMIT}"')
    return json.loads(text) | more


def test_models_of_the_hub_merge_by_their_ids(hub):
    config = of_hub(tokenizer_source="ann/where")
    (hub / "c.yaml").write_text(yaml.safe_dump(config))
    result = run("merge", "c.yaml", "out")
    assert result.exit_code == 0, result.output
    manifest = json.loads((hub / "out/manifest.json").read_text())
    sources = manifest["model"]["sources"]
    assert sources["ann/a"] == {"model": "ann/a", "kind": "hub", "revision": COMMIT}
    assert {s["revision"] for s in sources.values()} == {COMMIT}
    assert manifest["recipe"]["merge"]["models"][0]["model"] == "ann/a"
    assert manifest["recipe"]["merge"]["tokenizer_source"] == "ann/where"
    _, header, _ = (hub / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == ["ann/a", "ann/b"]
    assert ADDED in from_folder(hub / "out").get_vocab()
    assert run("merge", "c.yaml", "--check").exit_code == 0


def test_a_hub_model_that_is_not_in_the_cache_is_named(hub):
    (hub / "c.yaml").write_text(yaml.safe_dump(of_hub(tokenizer_source="ann/nothing")))
    error, hint, _ = fails("merge", "c.yaml", "out")
    assert "ann/nothing: no such folder here, not in the Hub's cache" in error
    assert "HF_HUB_OFFLINE" in hint
