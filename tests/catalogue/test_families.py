"""The table of `edgepack models` is true: what it says works is planned, the rest is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import edgepack
from edgepack.catalogue.families import CAPABILITIES, families, family_of, find
from edgepack.catalogue.published import PUBLISHED
from edgepack.core import plugins
from edgepack.errors import EdgepackError, RecipeError
from edgepack.merge.documents import open_merge
from edgepack.native import families as native
from edgepack.recipe.read import parse
from tests.support.commands import fails, run
from tests.support.tiny import TEXT, make_model

EVERY = plugins.names("architectures")
MODEL_CPP = Path(native.__file__).with_name("tune") / "model.cpp"
COMPRESS = {"format": "q4_0"}
SLICE = {"width": 32, "allow_growth": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two small models of each family, a text and examples."""
    base = tmp_path_factory.mktemp("families")
    (base / "text.txt").write_text("\n".join(TEXT * 30))
    (base / "notes.jsonl").write_text(json.dumps({"text": TEXT[0]}) + "\n")
    made = set()

    def make(family: str) -> Path:
        if family not in made:
            tied = plugins.find("architectures", family).head == "tied"
            for name in (family, f"{family}-2"):
                make_model(base / name, family, dtype=torch.float16, tied=tied)
            made.add(family)
        return base / family

    return make


def planned(folder: Path, target: str, **sections) -> None:
    """Plan a recipe for a model."""
    base = {
        "model": str(folder),
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "export": {"measure": {"tokens": 0}},
    }
    path = folder.parent / "recipe.yaml"
    path.write_text(json.dumps(base | sections))
    plan = edgepack.plan(path, target)
    assert plan.target.files_size(plan.model, plan.formats) > 0  # graph and metadata are made


def per_block(folder: Path) -> None:
    """For ONNX Runtime or for transformers."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    target = "onnx" if find(family).answers["onnx"] is None else "checkpoint"
    planned(folder, target, slice={"method": "per_block", **SLICE})


def merged(folder: Path) -> None:
    names = [str(folder), f"{folder}-2"]
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
    recipe = parse({"merge": {"merge_method": "linear", "models": models}})
    open_merge(recipe, folder.parent)


def tuned(folder: Path) -> None:
    """On a target that packs the family."""
    onnx = {"onnx": {"adapters": True}, "measure": {"tokens": 0}}
    family = json.loads((folder / "config.json").read_text())["model_type"]
    target = "gguf" if find(family).answers["gguf"] is None else "onnx"
    planned(folder, target, compress=COMPRESS, finetune={"data": "notes.jsonl"}, export=onnx)


def on_a_phone(folder: Path) -> None:
    """What edgepack-tune does with GGUF's name of the family (tests/native tries the program)."""
    config = json.loads((folder / "config.json").read_text())
    gguf = plugins.find("architectures", config["model_type"]).gguf
    if f'FAMILY("{gguf}",' not in native.LINES.read_text():
        raise EdgepackError("cannot be trained here")


TRIED = {
    "gguf": lambda folder: planned(folder, "gguf", compress=COMPRESS),
    "onnx": lambda folder: planned(folder, "onnx", compress=COMPRESS),
    "slice": lambda folder: planned(folder, "checkpoint", slice={"method": "global", **SLICE}),
    "per_block": per_block,
    "merge": merged,
    "tune": tuned,
    "phone": on_a_phone,
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", TRIED)
@pytest.mark.parametrize("family", EVERY)
def test_what_the_table_says_is_what_planning_says(models, family, capability):
    pytest.importorskip("onnx")
    folder = models(family)
    why_not = find(family).answers[capability]
    if why_not is None:
        TRIED[capability](folder)
    else:
        with pytest.raises(EdgepackError):
            TRIED[capability](folder)


def test_every_capability_is_tried():
    assert [one.key for one in CAPABILITIES] == list(TRIED)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_has_published_models_the_smallest_first(family):
    """A family of this package without an entry in catalogue/published.py would be a name that
    tells nobody which models it is."""
    found = find(family).models
    assert found
    assert [one.weights for one in found] == sorted(one.weights for one in found)


def test_published_models_have_ids_and_are_named_once():
    names = [one.name for models in PUBLISHED.values() for one in models]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in names)


def test_sizes_are_said_as_people_say_them():
    sizes = {one.name: one.size for one in PUBLISHED["qwen3"]}
    assert sizes["Qwen/Qwen3-0.6B"] == "596M"
    assert sizes["Qwen/Qwen3-4B"] == "4.02B"


def test_a_family_of_another_package_is_listed_without_models():
    from dataclasses import replace

    row = family_of(replace(plugins.find("architectures", "llama"), name="mine"))
    assert row.models == ()
    assert row.sizes == ""
    assert row.answers["gguf"] is None


def test_the_trainer_for_phones_is_compiled_from_the_lines_that_are_listed():
    assert native.trained() == ("llama", "qwen2", "qwen3")
    assert '#include "families.h"' in MODEL_CPP.read_text()
    lines = [line for line in native.LINES.read_text().splitlines() if not line.startswith("//")]
    assert len(lines) == len(native.trained())


@pytest.mark.slow
def test_the_command_lists_every_family():
    text = run("models").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()[:1] != []}
    for family in families():
        marks = re.findall(r"[✓–]", rows[family.name])
        assert [mark == "✓" for mark in marks] == [
            family.answers[one.key] is None for one in CAPABILITIES
        ]
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.slow
def test_one_family_with_its_models_and_why_not():
    text = run("models", "phi").stdout
    assert "microsoft/phi-2" in text
    assert "cannot be written as GGUF" in text
    error, hint, code = fails("models", "lama")
    assert "there is no 'lama'" in error
    assert "llama" in hint
    assert code == 2


@pytest.mark.slow
def test_json_says_the_same():
    found = {one["family"]: one for one in json.loads(run("models", "--json").stdout)}
    assert tuple(found) == EVERY
    assert found["opt"]["works"]["gguf"] is False
    assert "cannot be written" in found["opt"]["why_not"]["gguf"]
    assert found["qwen3"]["models"][0] == {"model": "Qwen/Qwen3-0.6B", "weights": 596e6}


def test_an_unknown_target_is_refused():
    from edgepack.planning import target

    with pytest.raises(RecipeError, match="'nothing' is not built"):
        target.kind("nothing")
