"""Weighted merges of small random models, from a recipe to a folder."""

from __future__ import annotations

import json
import random
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import edgepack
from edgepack.core.artifact import digest
from edgepack.errors import EdgepackError
from edgepack.merge.documents import plan_merges
from edgepack.merge.fisher import weighting
from edgepack.merge.stage import Options
from edgepack.output.provenance import located
from edgepack.recipe.read import load_merges
from tests.support.tiny import TEXT, make_model

CALIBRATE = {"tokens": 512, "sequence_length": 64, "objective": "model"}
WEIGHTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_text(path, seed):
    words = " ".join(TEXT).split()
    random.Random(seed).shuffle(words)
    path.write_text(" ".join(words * 40), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tunes of one base, and a text of each."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "base", dtype=torch.float32, hidden=32, intermediate=64, vocab=300)
    base = load_file(folder / "base" / "model.safetensors")
    for number, name in enumerate(("sql", "prose")):
        target = folder / name
        target.mkdir()
        for file in (folder / "base").iterdir():
            if file.suffix != ".safetensors":
                (target / file.name).write_bytes(file.read_bytes())
        draw = torch.Generator().manual_seed(10 + number)
        tuned = {
            key: W + 0.3 * W.std() * torch.randn(W.shape, generator=draw) for key, W in base.items()
        }
        save_file(tuned, target / "model.safetensors", {"format": "pt"})
        write_text(folder / f"{name}.txt", number)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(made, **changes):
    """A merge of both tunes."""
    models = [
        {"model": str(made / name), "text": str(made / f"{name}.txt"), "parameters": {"weight": 1}}
        for name in ("sql", "prose")
    ]
    return {
        "merge_method": "linear",
        "weighted": "fisher",
        "models": models,
        "calibrate": CALIBRATE,
    } | changes


def plain(content):
    """The same merge without a metric."""
    models = [{k: v for k, v in m.items() if k != "text"} for m in content["models"]]
    kept = {k: v for k, v in content.items() if k not in ("weighted", "calibrate")}
    return kept | {"models": models}


def merge(content, out, name="merge.yaml"):
    path = out.with_name(name)
    path.write_text(yaml.safe_dump(content))
    artifact = edgepack.merge_models(path, out, force=True)
    return load_file(out / "model.safetensors"), artifact


def stage_of(content, tmp_path):
    path = tmp_path / "planned.yaml"
    path.write_text(yaml.safe_dump(content))
    return plan_merges(load_merges(path), tmp_path, Options())


@pytest.mark.parametrize("objective", ["model", "guided"])
def test_a_weighted_mean_costs_less_and_says_what_it_is(made, tmp_path, objective):
    content = recipe(made, calibrate=CALIBRATE | {"objective": objective})
    found, artifact = merge(content, tmp_path / "fisher")
    mean, _ = merge(plain(content), tmp_path / "plain")
    for name, W in found.items():
        assert torch.equal(W, mean[name]) or any(part in name for part in WEIGHTED), name
    assert sum(not torch.equal(W, mean[name]) for name, W in found.items()) >= 7
    about = artifact.manifest["merge"]["weighted"]
    assert about["by"] == "fisher"
    assert about["weights"] == 14
    assert about["plain_mean"] == {
        "attn_norm": 2, "ffn_norm": 2, "output_norm": 1, "token_embd": 1
    }  # fmt: skip
    assert about["held_out_cost"] < 0.98
    costs = json.loads((tmp_path / "fisher" / "fisher.json").read_text())
    assert len(costs) == 14
    assert all(entry["cost"] <= entry["plain"] for entry in costs.values())
    assert not (tmp_path / "fisher" / "fisher.lines").exists()


def test_the_metric_is_guided_unless_a_recipe_names_another(made, tmp_path):
    for given, objective in (
        ({}, "guided"),
        ({"tokens": 512, "sequence_length": 64}, "guided"),
        (CALIBRATE, "model"),
    ):
        content = recipe(made, calibrate=given | {"sequence_length": 64})
        models = stage_of(content, tmp_path).fisher.models
        assert {model.stage.objective for model in models} == {objective}
        published = stage_of(content, tmp_path).published["calibrate"]
        assert published.get("objective", "guided") == objective
    del content["calibrate"]
    for model in content["models"]:
        del model["text"]
    assert stage_of(content, tmp_path).fisher.models[0].stage.objective == "guided"


def test_nothing_of_this_machine_is_in_the_output(made, tmp_path):
    _, artifact = merge(recipe(made), tmp_path / "fisher")
    text = (tmp_path / "fisher" / "recipe.yaml").read_text()
    text += (tmp_path / "fisher" / "mergekit_config.yml").read_text()
    assert str(made) not in text + json.dumps(artifact.manifest)
    assert "sql.txt" in text
    assert artifact.manifest["sources"]["merge.text.sql.txt"]


def test_one_model_that_counts_is_that_model(made, tmp_path):
    content = recipe(made)
    content["models"][1]["parameters"]["weight"] = 0
    found, _ = merge(content, tmp_path / "out")
    own = load_file(made / "sql" / "model.safetensors")
    assert all(torch.equal(W, own[name]) for name, W in found.items())


def test_equal_models_give_that_model(made, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (made / "sql").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = recipe(made)
    content["models"][1]["model"] = str(copy)
    found, artifact = merge(content, tmp_path / "out")
    own = load_file(made / "sql" / "model.safetensors")
    assert all(torch.allclose(W, own[name], atol=1e-6) for name, W in found.items())
    assert artifact.manifest["merge"]["weighted"]["stayed_plain"] == 14


def test_task_arithmetic_adds_the_same_change_to_the_base(made, tmp_path):
    """θ₀ + λ · (Σ wτ + Σw · D): where λ Σw = 1 that is the weighted linear merge."""
    models = recipe(made)["models"]
    for model in models:
        model["parameters"] = {"weight": 2}
    content = recipe(
        made,
        merge_method="task_arithmetic",
        models=models,
        base_model=str(made / "base"),
        parameters={"lambda": 0.25},
    )
    found, _ = merge(content, tmp_path / "task")
    linear, _ = merge(recipe(made), tmp_path / "linear")
    assert all(torch.allclose(W, linear[name], atol=1e-5) for name, W in found.items())


def test_an_adapter_counts_as_the_model_that_it_makes(made, tmp_path):
    """base+adapter, calibrated as it is read, merges as its merged folder does."""
    draw = torch.Generator().manual_seed(3)
    own = load_file(made / "base" / "model.safetensors")
    adapter, folder = tmp_path / "adapter", tmp_path / "whole"
    adapter.mkdir()
    folder.mkdir()
    tensors, whole = {}, dict(own)
    for name, W in own.items():
        if name.endswith("q_proj.weight"):
            A = torch.randn(2, W.shape[1], generator=draw)
            B = torch.randn(W.shape[0], 2, generator=draw) * 0.1
            module = "base_model.model." + name.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
            whole[name] = (B @ A).mul_(2.0).add_(W)
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    for file in (made / "base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    results = []
    for name in (f"{made / 'base'}+{adapter}", str(folder)):
        content = recipe(made)
        content["models"][0]["model"] = name
        results.append(merge(content, tmp_path / f"out{len(results)}")[0])
    assert all(torch.allclose(W, results[1][name], atol=1e-5) for name, W in results[0].items())


def test_a_killed_merge_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch):
    expected, _ = merge(recipe(made), tmp_path / "whole")
    costs = (tmp_path / "whole" / "fisher.json").read_bytes()
    calibrations = sorted((tmp_path / "cache" / "calibrate").iterdir())
    assert len(calibrations) == 2
    times = [path.stat().st_mtime_ns for path in calibrations]
    real, left = weighting.choose, [5]

    def dying(*terms):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*terms)

    monkeypatch.setattr(weighting, "choose", dying)
    with pytest.raises(KeyboardInterrupt):
        merge(recipe(made), tmp_path / "again")
    left[0] = 100
    found, _ = merge(recipe(made), tmp_path / "again")
    assert left[0] > 100 - 14  # what was written before is not made again
    assert all(torch.equal(W, expected[name]) for name, W in found.items())
    assert (tmp_path / "again" / "fisher.json").read_bytes() == costs
    assert [path.stat().st_mtime_ns for path in calibrations] == times


def test_only_the_weights_in_work_have_their_hessians_in_memory(made, tmp_path, monkeypatch):
    alive, most, real = weakref.WeakSet(), [0], weighting.load_hessian

    def spy(path, name):
        found = real(path, name)
        alive.add(found.train)
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(weighting, "load_hessian", spy)
    merge(recipe(made), tmp_path / "out")
    assert 2 <= most[0] <= 2 * 4 + 2  # two models, at most four weights at once


def test_of_chats_only_the_answers_count(made, tmp_path):
    """The labels of questions have no gradient; a plain text counts as a whole."""
    words = " ".join(TEXT).split()
    rows = [{"prompt": " ".join(words[i:] + words[:i]), "response": "yes"} for i in range(40)]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(map(json.dumps, rows)))
    content = recipe(made)
    content["models"][0]["text"] = str(chats)
    stage = stage_of(content, tmp_path)
    of_chats, of_text = (model.stage.text.tokens for model in stage.fisher.models)
    assert 0 < int(of_chats.counted.sum()) < 0.1 * of_chats.counted.numel()
    assert of_text.counted is None
    _, artifact = merge(content, tmp_path / "out")
    assert artifact.manifest["merge"]["weighted"]["held_out_cost"] < 1
    assert artifact.manifest["sources"]["merge.text.chats.jsonl"] == digest(chats)["sha256"]


def test_plan_shows_calibrations_before_the_merge(made, tmp_path):
    models = recipe(made)["models"]
    del models[1]["text"]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"merge": recipe(made, models=models)}))
    labels = [stage.label for stage in edgepack.plan(path, "checkpoint").stages]
    assert labels[:4] == ["calibrate of sql", "text of prose", "calibrate of prose", "merge"]


def test_a_build_goes_on_from_the_merge_and_reports_it(made, tmp_path):
    content = {
        "merge": recipe(made),
        "calibrate": {"source": str(made / "sql.txt"), "tokens": 512, "sequence_length": 64},
        "compress": {"format": "q4_0", "rank": 0, "damping": [0.1]},
        "export": {"measure": {"tokens": 0}},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    artifact = edgepack.build(path, "gguf", out=tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- merge: linear of sql, prose" in report
    assert "weighted: fisher, 14 weights; plain mean of 2 attn_norm, 2 ffn_norm" in report
    stages = artifact.manifest["stages"]
    assert {"calibrate of sql", "calibrate of prose", "merge", "calibrate"} <= set(stages)
    found = located(artifact)
    assert found.merge.models[0].text == str(made / "sql.txt")


def test_a_text_that_changes_changes_the_result(made, tmp_path):
    first = stage_of(recipe(made), tmp_path).key
    content = recipe(made)
    content["models"][0]["text"] = str(tmp_path / "sql.txt")
    (tmp_path / "sql.txt").write_bytes((made / "sql.txt").read_bytes())
    assert stage_of(content, tmp_path).key == first
    write_text(Path(tmp_path / "sql.txt"), 7)
    assert stage_of(content, tmp_path).key != first


def text_without_metric(content):
    del content["weighted"], content["calibrate"]


def with_slices(content):
    models = content.pop("models")
    sources = [{"model": m["model"], "layer_range": [0, 2]} for m in models]
    content["slices"] = [{"sources": sources}]


def another_text_of_that_name(content):
    path = Path(content["models"][0]["model"]).parent / "twin" / "sql.txt"
    path.parent.mkdir(exist_ok=True)
    write_text(path, 1)
    content["models"][1]["text"] = str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.update(merge_method="ties", base_model=c["models"][0]["model"]),
            "not with ties",
        ),
        (lambda c: c["models"][0]["parameters"].update(weight=-2), "weights \\[-2"),
        (lambda c: c["models"][0].update(text="nowhere.txt"), "models.0.text: nowhere.txt"),
        (lambda c: c["calibrate"].update(objective="layer"), "keeps no H"),
        (lambda c: c["calibrate"].update(source="a.txt"), "calibrate.source: there is no such key"),
        (lambda c: c.update(weighted="regmean"), "weighted"),
        (text_without_metric, "for `weighted: fisher`"),
        (another_text_of_that_name, "two texts are called sql.txt"),
        (with_slices, "in place of `slices`"),
    ],
)
def test_what_does_not_combine_is_refused_while_planning(made, tmp_path, change, words):
    content = json.loads(json.dumps(recipe(made)))
    change(content)
    with pytest.raises(EdgepackError, match=words):
        stage_of(content, tmp_path)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("calibrate/*"))
