"""`edgepack merge --check`, and the check that runs before every merge."""

import json

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from tests.support.commands import fails, run
from tests.support.tiny import make_model, make_tokenizer

LINEAR = {
    "merge_method": "linear",
    "models": [{"model": name, "parameters": {"weight": 1.0}} for name in "ab"],
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two models, the second of which has a token more, other ids and other special tokens."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "a")
    make_model(tmp_path / "b", seed=1, rows=520)
    tokenizer = make_tokenizer(vocab=300)
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    tokenizer.save_pretrained(tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text()) | {"eos_token_id": [300, 2]}
    path.write_text(json.dumps(config))
    path = tmp_path / "b" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 300, "temperature": 0.5}))
    return tmp_path


def write(path, *recipes):
    path.write_text(yaml.safe_dump_all(recipes))
    return path


def test_the_table_is_printed_and_nothing_is_written(models):
    path = write(models / "m.yml", {**LINEAR, "tokenizer_source": "union"})
    before = sorted(models.rglob("*"))
    result = run("merge", path, "--check")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["a", "b"]
    assert any(line.split() == ["hidden", "size", "64", "64", "ok"] for line in lines)
    assert any(line.startswith("memory of the merge") for line in lines)
    assert any(line.startswith("warning: eos token: <|im_end|> in a") for line in lines)
    assert sorted(models.rglob("*")) == before


def test_errors_are_another_exit_code_and_stop_a_merge(models):
    path = write(models / "m.yml", LINEAR)
    result = run("merge", path, "--check", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)["merge"]
    assert not found["ok"]
    assert [r["fact"] for r in found["rows"] if r["verdict"] == "error"] == ["differing tokens"]
    error, hint, code = fails("merge", path, "out")
    assert "the vocabularies differ in" in error
    assert "tokenizer_source: union" in hint
    assert code == 2


def test_every_merge_of_a_file_is_checked_up_to_the_first_error(models):
    first = {**LINEAR, "name": "first", "tokenizer_source": "base"}
    models_ = [{"model": name, "parameters": {"weight": 1.0}} for name in ("first", "a")]
    second = {"merge_method": "linear", "models": models_}
    result = run("merge", write(models / "m.yml", first, second), "--check")
    assert result.exit_code == 0
    assert "first:\n" in result.stdout
    assert "\n\nmerge:\n" in result.stdout
    wrong = {key: value for key, value in first.items() if key != "tokenizer_source"}
    result = run("merge", write(models / "m.yml", wrong, second), "--check")
    assert result.exit_code == 2
    assert "merge:\n" not in result.stdout


def test_ids_in_the_configuration_are_those_of_the_tokenizer(models):
    for name in ("base", "b", "union"):
        source = {"tokenizer_source": name}
        recipe = {**LINEAR, **source, "base_model": "a", "dtype": "float32"}
        result = run("merge", write(models / "m.yml", recipe), f"out-{name}")
        assert result.exit_code == 0
        assert "warning: eos token" in result.stdout
    base, b, union = (open_checkpoint(f"out-{name}") for name in ("base", "b", "union"))
    ids = [json.loads((models / f"out-{n}/config.json").read_text()) for n in ("base", "b")]
    assert [config["eos_token_id"] for config in ids] == [2, [300, 2]]
    assert [config["bos_token_id"] for config in ids] == [0, 0]
    assert b.generation_config()["eos_token_id"] == [300, 2]
    assert base.tokenizer.eos_token == "<|im_end|>"
    assert b.tokenizer.eos_token == "<|stop|>"
    assert (base.dimensions.vocab_size, b.dimensions.vocab_size) == (len(make_tokenizer()), 520)
    stop = union.tokenizer.get_vocab()["<|stop|>"]
    assert stop == len(make_tokenizer())
    own = open_checkpoint("b").tensor("model.embed_tokens.weight")[300]
    assert union.tensor("model.embed_tokens.weight")[stop].tolist() == own.tolist()


@pytest.mark.parametrize("tied", [(True, True), (True, False), (False, False)])
def test_heads_are_tied_as_in_the_inputs(tmp_path, monkeypatch, tied):
    """And rows of heads and embeddings are those of the same tokens, whichever is tied."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, own) in enumerate(zip("ab", tied, strict=True)):
        make_model(tmp_path / name, tied=own, seed=seed, dtype=torch.float32)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path / "b")
    rows = {"vocab_size": len(tokenizer)}
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | rows))
    path = tmp_path / "b" / "model.safetensors"
    tensors = load_file(path)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        if key in tensors:
            tensors[key] = torch.cat([tensors[key], torch.randn(1, 64)])
    save_file(tensors, path, metadata={"format": "pt"})
    recipe = {**LINEAR, "base_model": "a", "tokenizer_source": "union"}
    assert run("merge", write(tmp_path / "m.yml", recipe), "out").exit_code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained("out")
    a, b = open_checkpoint("a"), open_checkpoint("b")
    head = "lm_head.weight"
    heads = [m.tensor(head if head in m.specs else "model.embed_tokens.weight") for m in (a, b)]
    expected = torch.cat([(heads[0] + heads[1][:-1]) / 2, heads[1][-1:]])
    torch.testing.assert_close(model.lm_head.weight, expected, rtol=0, atol=1e-6)
    assert model.config.tie_word_embeddings == all(tied)
    is_same = model.lm_head.weight is model.model.embed_tokens.weight
    assert is_same == all(tied)
    assert len(model.lm_head.weight) == len(make_tokenizer()) + 1
