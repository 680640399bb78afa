"""Which tensor comes from where: slices, depth, heads; and what does not fit together."""

import json

import pytest
import torch

from edgepack.errors import EdgepackError, RecipeError
from tests.merge.recipes import LINEAR, change, made, plan, tensors
from tests.support.tiny import make_model

UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path):
    make_model(tmp_path / "a", layers=3, seed=1)
    make_model(tmp_path / "b", layers=3, seed=2)
    return tmp_path


def source(model, first, end, **more):
    return {"model": model, "layer_range": [first, end], **more}


def test_a_frankenmerge_counts_its_layers_anew(place):
    slices = [{"sources": [source("a", 0, 2)]}, {"sources": [source("b", 1, 3)]}]
    stage = plan(place, {"merge_method": "passthrough", "slices": slices})
    found, a, b = made(stage), tensors(place / "a"), tensors(place / "b")
    for layer, (model, index) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        assert torch.equal(found[UP.format(layer)], model[UP.format(index)])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"])
    assert UP.format(4) not in found
    assert json.loads((stage.folder / "config.json").read_text())["num_hidden_layers"] == 4
    assert stage.checkpoint.dimensions.num_hidden_layers == 4


def test_lists_with_an_entry_a_layer_go_with_the_layers(place):
    kinds = ["first", "middle", "last"]
    for name in "ab":
        path = place / name / "config.json"
        more = {"model_type": "strange", "layer_types": [f"{name} {kind}" for kind in kinds]}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    slices = [{"sources": [source("a", 1, 3)]}, {"sources": [source("b", 0, 2)]}]
    config = plan(place, {"merge_method": "passthrough", "slices": slices}).config
    assert config["layer_types"] == ["a middle", "a last", "b first", "b middle"]
    assert config["num_hidden_layers"] == 4


def test_depth_is_counted_within_a_slice(place):
    weights = {"a": {"weight": [1, 0]}, "b": {"weight": [0, 1]}}
    models = [{"model": name, "parameters": weights[name]} for name in "ab"]
    found = made(plan(place, {"merge_method": "linear", "models": models, "dtype": "float32"}))
    a, b = tensors(place / "a"), tensors(place / "b")
    for layer, share in enumerate((0, 0.5, 1)):
        wanted = (1 - share) * a[UP.format(layer)].float() + share * b[UP.format(layer)].float()
        assert torch.allclose(found[UP.format(layer)], wanted, atol=1e-7)
    for outside in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(found[outside], a[outside].float()), "t is 0 outside the layers"


def test_a_tied_head_stays_tied_and_is_stored_once(place):
    stage = plan(place, LINEAR)
    assert "lm_head.weight" not in made(stage)
    assert stage.config["tie_word_embeddings"] is True


def test_a_tied_model_lends_its_embedding_to_an_untied_head(tmp_path):
    make_model(tmp_path / "a", tied=True, seed=1)
    make_model(tmp_path / "b", tied=False, seed=2)
    stage = plan(tmp_path, {**LINEAR, "dtype": "float32"})
    found, a, b = made(stage), tensors(tmp_path / "a"), tensors(tmp_path / "b")
    head = 0.25 * a["model.embed_tokens.weight"].float() + 0.75 * b["lm_head.weight"].float()
    assert torch.allclose(found["lm_head.weight"], head, atol=1e-7)
    assert stage.config["tie_word_embeddings"] is False


def test_out_dtype_is_what_is_stored(place):
    stage = plan(place, {**LINEAR, "dtype": "float32", "out_dtype": "float16"})
    assert {tensor.dtype for tensor in made(stage).values()} == {torch.float16}
    assert stage.config["dtype"] == "float16"


def refused(place, document):
    with pytest.raises(EdgepackError) as caught:
        made(plan(place, document))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_missing_tensor_is_named_with_its_model(place):
    change(place / "b", UP.format(1), None)
    message = refused(place, LINEAR)
    assert UP.format(1) in message
    assert "b" in message


def test_a_misshapen_tensor_is_named_with_its_model(place):
    change(place / "b", UP.format(1), torch.zeros(3, 3))
    message = refused(place, LINEAR)
    assert UP.format(1) in message
    assert "[3, 3]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_named_with_its_model_and_tensor(place, value):
    W = tensors(place / "b")[UP.format(2)].clone()
    W[3, 5] = value
    change(place / "b", UP.format(2), W)
    what = "NaN" if value != value else "infinity"
    assert refused(place, LINEAR) == f"b: {UP.format(2)} holds {what} at [3, 5]"


def test_large_numbers_are_numbers(place):
    change(place / "b", UP.format(2), torch.full((96, 64), 3e38, dtype=torch.bfloat16))
    assert torch.isfinite(made(plan(place, LINEAR))[UP.format(2)].float()).all()


def test_models_of_different_families_are_refused(tmp_path):
    make_model(tmp_path / "a", "llama")
    make_model(tmp_path / "b", "qwen2")
    message = refused(tmp_path, LINEAR)
    assert "llama" in message
    assert "qwen2" in message


def test_a_layer_beyond_the_last_is_refused(place):
    slices = [{"sources": [source("a", 0, 9)]}]
    message = refused(place, {"merge_method": "passthrough", "slices": slices})
    assert "3 layers" in message


def test_a_method_says_how_many_models_it_takes(place):
    models = [{"model": "a"}, {"model": "b"}]
    with pytest.raises(RecipeError, match="slerp needs a base_model"):
        plan(place, {"merge_method": "slerp", "models": models, "parameters": {"t": 1}})


def test_families_that_edgepack_does_not_know_merge_by_name(place):
    for name in "ab":
        path = place / name / "config.json"
        config = json.loads(path.read_text()) | {"model_type": "strange", "architectures": ["X"]}
        path.write_text(json.dumps(config))
    stage = plan(place, LINEAR)
    assert any("strange" in note for note in stage.notes)
    a, b = tensors(place / "a"), tensors(place / "b")
    wanted = 0.25 * a[UP.format(1)].float() + 0.75 * b[UP.format(1)].float()
    assert torch.equal(made(stage)[UP.format(1)], wanted.to(torch.bfloat16))
