"""What is found while a merge is planned, before any weight is read; and float64."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CheckpointError, RecipeError
from edgepack.merge.inputs import Input
from tests.merge.recipes import LINEAR, change, made, plan, tensors
from tests.merge.test_inputs import adapter
from tests.support.commands import fails, run
from tests.support.tiny import make_model

UP = "model.layers.1.mlp.up_proj.weight"
OPPOSITE = {"filter": "mlp", "value": -0.25}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    return tmp_path


def weights(*values, **more):
    models = [{"model": m, "parameters": {"weight": w}} for m, w in zip("ab", values, strict=True)]
    return LINEAR | {"models": models} | more


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (weights(0.25, -0.25), "model.embed_tokens.weight"),
        (weights([0.25, 0.75], [0.5, -0.75]), "model.layers.1.input_layernorm.weight"),
        (weights(0.25, [OPPOSITE, {"value": 1}]), "model.layers.0.mlp.gate_proj.weight"),
        (weights(0.5, -0.5, merge_method="multislerp"), "model.embed_tokens.weight"),
    ],
)
def test_weights_that_sum_to_zero_are_found_before_anything_is_read(
    place, monkeypatch, document, named
):
    monkeypatch.setattr(Input, "read", lambda self, name: pytest.fail("read"))
    with pytest.raises(RecipeError, match="the weights sum to 0") as error:
        plan(place, document)
    assert str(error.value).startswith(f"{named}: the weights sum to 0")
    assert str(error.value).count(named) == 1


def test_the_command_says_so_too_and_so_does_the_check(place):
    (place / "c.yaml").write_text(yaml.safe_dump(weights(1, -1)))
    for more in (("out",), ("--check",)):
        error, hint, code = fails("merge", "c.yaml", *more)
        assert "model.embed_tokens.weight: the weights sum to 0" in error
        assert "linear: weighted mean" in hint
        assert code == 2
    assert plan(place, weights(1, -1, parameters={"normalize": False}))


def test_a_misspelt_method_is_named_by_its_key(place):
    with pytest.raises(RecipeError, match="merge_method: there is no 'tiess'") as error:
        plan(place, LINEAR | {"merge_method": "tiess"})
    assert error.value.hint == "did you mean ties?"


def doubled(place, name):
    """The model stored in float64, with numbers that float32 does not have."""
    torch.manual_seed(ord(name))
    found = tensors(place / name)
    return {
        key: W.double() + 1e-9 * torch.rand(W.shape, dtype=torch.float64)
        for key, W in found.items()
    }


def test_float64_is_a_type_like_the_others(place):
    models = {name: doubled(place, name) for name in "ab"}
    for name, found in models.items():
        save_file(found, place / name / "model.safetensors", metadata={"format": "pt"})
    wanted = 0.25 * models["a"][UP] + 0.75 * models["b"][UP]
    kept = plan(place, LINEAR)
    assert torch.allclose(made(kept)[UP], wanted, rtol=0, atol=1e-16)
    config = json.loads((kept.folder / "config.json").read_text())
    assert config["dtype"] == "float64"
    assert open_checkpoint(str(kept.folder)).tensor(UP).dtype == torch.float32
    single = made(plan(place, LINEAR | {"dtype": "float64", "out_dtype": "float32"}))[UP]
    assert torch.equal(single, wanted.float()), "rounded once, at the end"
    largest = max(tensor.numel for tensor in kept.layout.tensors)
    tensor = next(t for t in kept.layout.tensors if t.numel == largest)
    assert kept.work.needs(tensor) == 3 * 8 * largest


def test_float64_is_written_where_a_recipe_asks_for_it(place):
    (place / "c.yaml").write_text(yaml.safe_dump(LINEAR | {"dtype": "float64"}))
    assert run("merge", "c.yaml", "out").exit_code == 0
    found = load_file(place / "out/model.safetensors")
    a, b = tensors(place / "a"), tensors(place / "b")
    assert torch.equal(found[UP], 0.25 * a[UP].double() + 0.75 * b[UP].double())


def test_an_adapter_on_a_float64_model_keeps_its_bits(place):
    found = doubled(place, "a")
    save_file(found, place / "a" / "model.safetensors", metadata={"format": "pt"})
    delta = adapter(place / "lora")
    document = {"merge_method": "passthrough", "models": [{"model": "a+lora"}]}
    assert torch.equal(made(plan(place, document))[UP], found[UP] + delta.double())


def test_numbers_that_the_result_cannot_hold_are_named(place):
    W = tensors(place / "a")[UP].double()
    W[0, 0] = 1e300
    change(place / "a", UP, W)
    with pytest.raises(CheckpointError, match=f"{UP} has values that bfloat16 cannot hold"):
        made(plan(place, weights(1, 1, out_dtype="bfloat16")))
