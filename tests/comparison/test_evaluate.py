"""`edgepack evaluate` as a user meets it, on a model small enough to build in a second."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import edgepack
from edgepack.core import stage as cache
from edgepack.errors import EdgepackError
from edgepack.metrics import tasks as edgepack_tasks
from tests.support.commands import RECIPE, fails, run
from tests.support.tiny import TEXT, make_model

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two builds of one model, with factors and without, a text and two tasks."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_model(folder / "llama", intermediate=128)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    (folder / "other.txt").write_text("\n".join(reversed(TEXT * 30)))
    for rank in (4, 0):
        measure = {"tokens": 256, "context": 64, "stock": False}
        changed = {"compress": RECIPE["compress"] | {"rank": rank}, "export": {"measure": measure}}
        (folder / f"rank{rank}.yaml").write_text(yaml.safe_dump(RECIPE | changed))
        edgepack.build(folder / f"rank{rank}.yaml", out=folder / f"rank{rank}")
    copa = [
        {"query": f"The fox {n}, because", "choices": ["it rests.", "the moon jumps."], "gold": 0}
        for n in range(12)
    ]
    piqa = [{"goal": f"See {n}.", "sol1": "Look.", "sol2": "Jump over it."} for n in range(9)]
    (folder / "piqa").mkdir()
    for name, rows in (("copa_dev.jsonl", copa), ("piqa/valid.jsonl", piqa)):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    (folder / "piqa/valid-labels.lst").write_text("0\n" * 9)
    return folder


@pytest.fixture(autouse=True)
def _here(place, monkeypatch):
    monkeypatch.chdir(place)


TASKS = ("--tasks", "copa,piqa", "--data", ".")


@pytest.mark.slow
def test_a_folder_is_compared_with_its_original_as_its_build_measured_it(place):
    found = json.loads(run("evaluate", "rank4", "--context", 64, "--tokens", 256, "--json").stdout)
    measured = json.loads((place / "rank4/manifest.json").read_text())["measured"]
    ours = found["models"]["rank4"]["text"]
    assert found["reference"] == "original (f16)"
    assert found["text"]["tokens"] == measured["tokens"]
    for key in ("kl_mean", "kl_p999", "top1", "perplexity", "reference_perplexity"):
        assert ours[key] == pytest.approx(measured["results"]["edgepack"][key], rel=1e-6)
    original = found["models"]["original (f16)"]["text"]
    assert original["perplexity"] == ours["reference_perplexity"]
    assert not list(cache.root().glob("original-*"))


@pytest.mark.slow
def test_models_stand_side_by_side_in_tables():
    result = run("evaluate", "rank4", "--against", "rank0", "--text", "other.txt", *TASKS)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0][:4] == ["2560", "tokens", "of", "other.txt,"]
    names = [row[0] for row in rows[2:6]]
    assert names == ["model", "original", "rank4", "rank0"]
    tasks = [(row[0], row[1]) for row in rows if row and row[0] in ("copa", "piqa", "mean")]
    assert tasks == [(t, m) for t in ("copa", "piqa", "mean") for m in ("original", *names[2:])]
    assert "difference: that to original (f16)" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    stages = [line.split()[0] for line in result.stderr.splitlines() if "done in" in line]
    assert stages == ["original", "measure", "tasks"]


@pytest.mark.slow
def test_json_has_every_figure_with_its_error():
    arguments = ["rank0", "--against", "rank4/base.gguf", "--tokens", 0, *TASKS, "--limit", 5]
    found = json.loads(run("evaluate", *arguments, "--json").stdout)
    assert found["text"] is None
    assert list(found["models"]) == ["original (f16)", "rank0", "rank4/base.gguf"]
    for name, model in found["models"].items():
        scores = model["tasks"]
        assert scores["copa"]["items"] == scores["piqa"]["items"] == 5
        assert 0 <= scores["piqa"]["acc_norm"] <= 1
        assert "acc_norm" not in scores["copa"]
        assert ("difference_error" in scores["copa"]) == (name != found["baseline"])
        wanted = (scores["copa"]["acc"] * (1 - scores["copa"]["acc"]) / 4) ** 0.5
        assert scores["copa"]["acc_error"] == pytest.approx(wanted)


@pytest.mark.slow
def test_factors_count():
    arguments = ["rank4", "--against", "rank4/base.gguf", "--text", "other.txt"]
    models = json.loads(run("evaluate", *arguments, "--json").stdout)["models"]
    assert models["rank4"]["text"]["kl_mean"] < models["rank4/base.gguf"]["text"]["kl_mean"]
    assert models["rank4"]["bytes"] > models["rank4/base.gguf"]["bytes"]


@pytest.mark.slow
def test_a_bare_file_has_perplexity_and_with_a_reference_kl():
    bare = ["evaluate", "rank0/base.gguf", "--text", "other.txt", "--json"]
    alone = json.loads(run(*bare).stdout)
    assert alone["reference"] is None
    assert set(alone["models"]["rank0/base.gguf"]["text"]) == {
        "positions",
        "perplexity",
        "perplexity_error",
    }
    found = json.loads(run(*bare, "--reference", "rank4/base.gguf").stdout)
    ours = found["models"]["rank0/base.gguf"]["text"]
    assert found["reference"] == "rank4/base.gguf"
    assert ours["kl_mean"] > 0
    assert ours["perplexity"] == pytest.approx(
        alone["models"]["rank0/base.gguf"]["text"]["perplexity"]
    )


WRONG = {
    "path": (["nothing"], "nothing: no such file or folder", ".gguf file", 1),
    "folder": (["llama"], "not an output folder", "edgepack build", 1),
    "against": (["rank0", "--against", "no.gguf"], "no.gguf: no such", ".gguf file", 1),
    "reference": (["rank0", "--reference", "no.gguf"], "no.gguf: no such", ".gguf file", 1),
    "nothing to do": (["rank0/base.gguf"], "nothing to measure", "--text FILE", 2),
    "no text": (["rank0", "--text", "no.txt"], "no.txt is not a file", "--tokens 0", 1),
    "no data": (["rank0", "--tasks", "copa"], "needs --data FOLDER", "copa_dev.jsonl", 2),
    "task": (["rank0", "--tasks", "coppa", "--data", "."], "no 'coppa'", "mean copa?", 2),
    "task file": (["rank0", "--tasks", "boolq", "--data", "."], "boolq: there is no file", "", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line_and_a_hint(name):
    arguments, message, hint, code = WRONG[name]
    error, advice, exit_code = fails("evaluate", *arguments)
    assert message in error
    assert hint in advice
    assert exit_code == code


@pytest.mark.slow
def test_a_short_text_and_an_adapter_in_a_models_place_are_named():
    with pytest.raises(EdgepackError, match="one chunk needs 512"):
        edgepack.evaluate("rank0/base.gguf", text="rank4.yaml")
    with pytest.raises(EdgepackError, match=r"cannot load rank4/factors\.gguf"):
        edgepack.evaluate("rank4/factors.gguf", text="other.txt")


@pytest.mark.slow
def test_another_vocabulary_is_refused(place):
    make_model(place / "wide", rows=640, intermediate=128)
    (place / "wide.yaml").write_text(
        yaml.safe_dump(RECIPE | {"model": "wide", "export": {"measure": {"tokens": 0}}})
    )
    edgepack.build(place / "wide.yaml", out=place / "wide-gguf")
    with pytest.raises(EdgepackError, match="has 640 tokens, the first model"):
        edgepack.evaluate("rank0/base.gguf", against=["wide-gguf/base.gguf"], text="text.txt")


def test_an_original_that_has_changed_is_refused(place):
    shutil.copytree(place / "llama", place / "kept")
    try:
        make_model(place / "llama", intermediate=128, seed=1)
        with pytest.raises(EdgepackError, match="is not what rank0 was made of any more"):
            edgepack.evaluate("rank0", text="text.txt")
    finally:
        shutil.rmtree(place / "llama")
        (place / "kept").rename(place / "llama")


def test_the_help_names_every_task():
    text = run("evaluate", "--help").stdout
    assert all(name in text for name in edgepack_tasks.TASKS)


def test_text_that_is_gone_is_an_error_that_names_the_option(place):
    (place / "text.txt").rename(place / "gone.txt")
    try:
        error, hint, _ = fails("evaluate", "rank0")
        assert "has no held-out calibration text" in error
        assert "--text FILE" in hint
    finally:
        (place / "gone.txt").rename(place / "text.txt")


def test_the_function_keeps_its_name_when_its_package_is_imported():
    from edgepack.metrics.multiple_choice import answer

    assert callable(edgepack.evaluate)
    assert answer.__module__ == "edgepack.metrics.multiple_choice"
    names = {"build", "compare", "evaluate", "export_training", "merge_adapters", "merge_models"}
    assert set(edgepack.__all__) == {*names, "plan"}
