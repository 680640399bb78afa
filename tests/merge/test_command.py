"""`edgepack merge`: mergekit's command lines, what it writes, what it says."""

import json
import shutil

import pytest
import yaml

import edgepack
from tests.merge.recipes import LINEAR, made, plan, tensors
from tests.support.commands import fails, run
from tests.support.tiny import make_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
        (tmp_path / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LINEAR))
    return tmp_path


def test_mergekits_habits_are_answered_with_a_line_each(place):
    habits = ["--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle"]
    result = run("merge", "c.yaml", "out", *habits, "--lora-merge-cache", "/x", "--no-cuda", "-vv")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    for flag, words in (
        ("--copy-tokenizer", "is on by default"),
        ("--allow-crimes", "does not exist here"),
        ("--lazy-unpickle", "is on by default"),
        ("--lora-merge-cache", "is not needed"),
        ("--no-cuda", "is so here"),
        ("-v", "does not exist here"),
    ):
        assert [line for line in lines if line.startswith(f"{flag}: {words}")], flag
    assert "linear of a, b" in result.stdout


def test_a_third_name_is_an_error(place):
    error, *_ = fails("merge", "c.yaml", "out", "other")
    assert "'other': is one name too many" in error


def test_an_unknown_option_is_an_error(place):
    error, hint, code = fails("merge", "c.yaml", "out", "--lazy-unpikle")
    assert "no option --lazy-unpikle" in error
    assert "did you mean --lazy-unpickle?" in hint
    assert code == 2


def test_the_folder_is_an_output_like_any_other(place):
    run("merge", "c.yaml", "out")
    manifest = json.loads((place / "out/manifest.json").read_text())
    assert manifest["merge"]["models"] == ["a", "b"]
    assert str(place) not in json.dumps(manifest)
    assert "linear of" not in run("show", "out").stderr
    shown = run("show", "out")
    assert shown.exit_code == 0
    assert "merge: linear of a, b" in shown.stdout
    assert "The model for transformers and README.md are in out/" in shown.stdout
    assert "report.md" not in shown.stdout
    error, *_ = fails("merge", "c.yaml", "out")
    assert "already exists" in error
    assert run("merge", "c.yaml", "out", "--force").exit_code == 0


def test_the_card_has_what_the_hub_wants(place):
    run("merge", "c.yaml", "out")
    _, header, text = (place / "out/README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["license"] == "apache-2.0"
    assert {"merge", "mergekit"} <= set(card["tags"])
    assert "| a | apache-2.0 |" in text
    assert "merge_method: linear" in text


def test_licences_that_the_hub_has_no_name_for_stay_apart(place):
    for name, own in (("a", "llama3"), ("b", "llama3"), ("c", "gemma")):
        if name == "c":
            make_model(place / name, seed=2)
        (place / name / "README.md").write_text(f"---\nlicense: other\nlicense_name: {own}\n---\n")
    run("merge", "c.yaml", "same")
    header = yaml.safe_load((place / "same/README.md").read_text().split("---\n", 2)[1])
    assert (header["license"], header["license_name"]) == ("other", "llama3")
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ac"]
    (place / "c.yaml").write_text(yaml.safe_dump(LINEAR | {"models": models}))
    run("merge", "c.yaml", "apart")
    text = (place / "apart/README.md").read_text()
    assert "license" not in yaml.safe_load(text.split("---\n", 2)[1])
    assert "| c | gemma |" in text
    assert "different licences" in text


def test_the_recipe_beside_the_result_makes_it_again(place):
    run("merge", "c.yaml", "out")
    for name in ("mergekit_config.yml", "recipe.yaml"):
        shutil.copy(place / "out" / name, place / name)
        edgepack.merge_models(place / name, place / f"again-{name}")
        one, two = tensors(place / "out"), tensors(place / f"again-{name}")
        assert all((one[key] == two[key]).all() for key in one)


def test_documents_of_one_file(place):
    inner = {**LINEAR, "name": "inner"}
    outer = {"merge_method": "passthrough", "models": [{"model": "inner"}]}
    text = yaml.safe_dump(outer) + "---\n" + yaml.safe_dump(inner)
    (place / "two.yaml").write_text(text)
    assert run("merge", "two.yaml", "two").exit_code == 0
    wanted = made(plan(place, LINEAR))
    assert all((value == wanted[name]).all() for name, value in tensors(place / "two").items())


@pytest.mark.parametrize("size", ["x", "-1", "0", "5Q", ""])
def test_a_size_that_is_none_is_an_error(place, size):
    error, *_ = fails("merge", "c.yaml", "out", f"--out-shard-size={size}")
    assert "--out-shard-size" in error


def test_a_merge_of_merges_whose_tokenizers_are_not_written_yet(place):
    """The tokenizer of `second` is that of `first`, which has no folder before it is made."""
    first = {**LINEAR, "name": "first"}
    slerp = {"merge_method": "slerp", "base_model": "first", "parameters": {"t": 0.5}}
    second = {**slerp, "name": "second", "models": [{"model": "first"}, {"model": "a"}]}
    last = {**LINEAR, "models": [{"model": "second", "parameters": {"weight": 1}}]}
    (place / "three.yaml").write_text(yaml.safe_dump_all([first, second, last]))
    result = run("merge", "three.yaml", "three")
    assert result.exit_code == 0, result.output
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in files:
        assert (place / "three" / name).read_bytes() == (place / "a" / name).read_bytes()


def test_where_the_author_had_the_tokenizer_is_not_handed_on(place):
    path = place / "a/tokenizer_config.json"
    config = json.loads(path.read_text())
    noted = {"name_or_path": "/home/ann/a", "special_tokens_map_file": "/home/ann/.cache/s.json"}
    path.write_text(json.dumps({**config, **noted}))
    for name, more in {"as-it-is": {}, "with-template": {"chat_template": "chatml"}}.items():
        (place / "c.yaml").write_text(yaml.safe_dump({**LINEAR, **more}))
        assert run("merge", "c.yaml", name).exit_code == 0
        assert json.loads((place / name / "tokenizer_config.json").read_text()) == config


def test_keys_without_a_value_are_as_if_not_there(place):
    """As people leave them: `parameters:` with nothing but a comment below it."""
    passthrough = "merge_method: passthrough\nmodels:\n  - model: a\n    parameters:\n"
    (place / "c.yaml").write_text(passthrough + "parameters:\ndtype:\nslices:\n")
    result = run("merge", "c.yaml", "out")
    assert result.exit_code == 0, result.output


def test_the_misspelt_key_is_named_and_not_only_the_missing_one(place):
    (place / "c.yaml").write_text("merge_methd: linear\nmodels:\n  - model: a\n")
    error, hint, _ = fails("merge", "c.yaml", "out")
    assert error.startswith("error: merge_methd: there is no such key")
    assert "did you mean merge_method?" in hint
    (place / "c.yaml").write_text("models:\n  - model: a\n")
    error, *_ = fails("merge", "c.yaml", "out")
    assert error.startswith("error: merge_method: is missing")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_named_with_its_model(place, file):
    path = place / "b" / file
    path.write_bytes(path.read_bytes()[:100])
    error, *_ = fails("merge", "c.yaml", "out")
    assert error.startswith(f"error: b: {file}: ")


def test_parameters_of_other_methods_are_remarked(place):
    """Recipes on the hub have them, since mergekit says nothing of them."""
    slerp = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}]}
    given = {"t": 0.5, "int8_mask": True}
    made = {}
    for name, more in {"plain": {}, "more": {"normalize": True, "embed_slerp": True}}.items():
        recipe = {**slerp, "parameters": {**given, **more}}
        (place / "c.yaml").write_text(yaml.safe_dump(recipe))
        result = run("merge", "c.yaml", name)
        assert result.exit_code == 0, result.output
        said = "slerp has no embed_slerp, normalize" in " ".join(result.stdout.split())
        assert said == (name == "more")
        made[name] = tensors(place / name)
    assert all((made["plain"][key] == made["more"][key]).all() for key in made["plain"])
    recipe["parameters"]["normalise"] = True
    (place / "c.yaml").write_text(yaml.safe_dump(recipe))
    error, *_ = fails("merge", "c.yaml", "wrong")
    assert "slerp has no parameter 'normalise'" in error


def test_a_filter_for_no_tensor_is_remarked(place):
    t = [{"filter": "mlp", "value": 0}, {"filter": "atn", "value": 1}, {"value": 0.5}]
    slerp = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}]}
    (place / "c.yaml").write_text(yaml.safe_dump({**slerp, "parameters": {"t": t}}))
    said = " ".join(run("merge", "c.yaml", "out").stdout.split())
    assert "no tensor's name has 'atn'" in said
    assert "has 'mlp'" not in said
