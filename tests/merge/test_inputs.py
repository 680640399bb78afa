"""What can be merged: folders, GGUF files, adapters, results of other merges."""

import json

import pytest
import torch
from safetensors.torch import save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import EdgepackError, RecipeError
from edgepack.model.open import open_model
from edgepack.recipe.fine_tune import FineTune
from edgepack.recipe.references import Reference, parse
from tests.merge.recipes import LINEAR, made, merges, plan, stages, tensors
from tests.support.fine_tunes import make_adapter
from tests.support.tiny import make_model, write_gguf

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    make_model(tmp_path / "a", seed=1)
    make_model(tmp_path / "b", seed=2)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("owner/name", Reference("owner/name")),
        ("owner/name@main", Reference("owner/name@main")),
        ("owner/name@v1+other/lora@v2", Reference("owner/name@v1", "other/lora@v2")),
        ({"model": "a", "lora": "b"}, Reference("a", "b")),
        ({"model": {"path": "a", "revision": "v1"}}, Reference("a@v1")),
        ({"model": {"path": "a"}, "lora": None}, Reference("a")),
    ],
)
def test_references_are_mergekits(written, meant):
    assert parse(written) == meant
    assert parse(str(meant)) == meant


@pytest.mark.parametrize("written", ["a+b+c", 3, {"lora": "x"}, {"model": 1}, "", {"path": 1}])
def test_what_is_no_reference_is_refused(written):
    with pytest.raises(ValueError, match=r"\w"):
        parse(written)


def adapter(folder, rank=4, scale=1.0, name=UP, shape=(96, 64), **config):
    folder.mkdir()
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": rank * scale, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    stem = "base_model.model." + name.removesuffix(".weight")
    A, B = torch.randn(rank, shape[1]), torch.randn(shape[0], rank)
    pair = {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    save_file(pair, folder / "adapter_model.safetensors")
    return B @ A


def passthrough(model):
    return {"merge_method": "passthrough", "models": [{"model": model}], "dtype": "float32"}


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_added_as_a_tensor_is_read(place, rslora):
    delta = adapter(place / "lora", scale=3.0, use_rslora=rslora)
    found, a = made(plan(place, passthrough("a+lora"))), tensors(place / "a")
    scale = 3.0 * 2 if rslora else 3.0  # √4
    wanted = (a[UP].float() + scale * delta).to(torch.bfloat16).float()
    assert torch.allclose(found[UP], wanted, rtol=0.01)
    assert all(torch.equal(found[n], a[n].float()) for n in a if n != UP)


def test_a_merge_and_a_recipe_make_the_same_of_an_adapter(place):
    make_adapter(place / "a", place / "lora", use_dora=True, modules_to_save=["norm"])
    found = made(plan(place, passthrough("a+lora")))
    wanted = open_model(FineTune(base="a", adapter="lora"), place)
    norm = "model.norm.weight"
    assert not torch.equal(wanted.tensor(norm), tensors(place / "a")[norm].float())
    for name in found:
        rounded = wanted.tensor(name).to(torch.bfloat16).float()  # merged in the base's type
        assert torch.equal(found[name], rounded), name


def test_an_adapter_of_another_model_is_refused(place):
    adapter(place / "lora", shape=(96, 32))
    with pytest.raises(EdgepackError, match=f"lora: {UP} does not fit a"):
        plan(place, passthrough("a+lora"))
    adapter(place / "other", name="model.layers.7.mlp.up_proj.weight")
    with pytest.raises(EdgepackError, match="which a does not have"):
        plan(place, passthrough("a+other"))


def test_a_path_with_a_plus_sign_is_a_path(place):
    make_model(place / "c+d", seed=3)
    found = made(plan(place, passthrough("c+d")))
    assert torch.equal(found[UP], tensors(place / "c+d")[UP].float())


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_gguf_merges_with_a_folder(place, kind):
    write_gguf(place / "b.gguf", open_checkpoint(str(place / "b")), kind)
    document = json.loads(json.dumps(LINEAR).replace('"b"', '"b.gguf"')) | {"dtype": "float32"}
    found = made(plan(place, document))
    a, b = tensors(place / "a"), open_checkpoint(str(place / "b.gguf"))
    for name in (UP, "model.layers.0.self_attn.q_proj.weight"):
        wanted = 0.25 * a[name].float() + 0.75 * b.tensor(name)
        assert torch.allclose(found[name], wanted, atol=1e-6)


def test_a_gguf_alone_becomes_a_folder(place):
    source = open_checkpoint(str(place / "b"))
    write_gguf(place / "b.gguf", source, "F32")
    stage = plan(place, passthrough("b.gguf"))
    assert torch.equal(made(stage)[UP], source.tensor(UP))
    again = open_checkpoint(str(stage.folder))
    assert again.dimensions == source.dimensions
    assert again.tokenizer.encode("a fox") == source.tokenizer.encode("a fox")


def named(name, *models, method="linear"):
    listed = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": method, "models": listed, "dtype": "float32"} | (
        {} if name is None else {"name": name}
    )


def test_merges_use_one_anothers_results(place):
    make_model(place / "c", seed=3)
    stage = plan(place, named(None, "inner", "c"), named("inner", "a", "b"))
    found = made(stage)
    a, b, c = (tensors(place / name)[UP].float() for name in "abc")
    assert torch.allclose(found[UP], ((a + b) / 2 + c) / 2, atol=1e-6)


def test_an_intermediate_result_is_kept_by_content_not_by_name(place):
    documents = named(None, "inner", "b"), named("inner", "a", "b")
    before = stages(plan(place, *documents))
    again = stages(plan(place, *documents))
    assert [s.key for s in before] == [s.key for s in again]
    make_model(place / "a", seed=9)
    after = stages(plan(place, *documents))
    assert not {s.key for s in before} & {s.key for s in after}


def test_a_circle_is_named(place):
    with pytest.raises(RecipeError, match="one → two → one: leads in a circle"):
        plan(place, named("one", "two"), named("two", "one"))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([named(None, "a"), named(None, "b")], "two merges have none"),
        ([named("x", "a"), named("x", "b")], "two merges are called 'x'"),
        ([named(None, "a"), named("x", "b")], "nothing uses the merge 'x'"),
        ([named("x", "a"), named("y", "b")], "which merge is the result"),
    ],
)
def test_documents_that_lead_nowhere_are_refused(place, documents, message):
    with pytest.raises(RecipeError, match=message):
        plan(place, *documents)


def test_a_recipe_of_one_document_may_have_a_name():
    assert merges(named("x", "a"))[0].name == "x"
