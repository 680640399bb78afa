"""Gradients on packed weights equal those of PyTorch's autograd on the dequantized model."""

from __future__ import annotations

import pytest
import torch

from edgepack.errors import EdgepackError
from edgepack.finetune import loss as losses
from edgepack.finetune.arithmetic import choose
from edgepack.finetune.batches import micro_batches
from edgepack.finetune.frozen import FrozenModel
from edgepack.finetune.gradient import backward, score
from edgepack.finetune.trained import Factors, Stack, targets
from edgepack.recipe.training import Finetune
from tests.support.bases import Dense, packed_base, random_examples
from tests.support.tiny import LAYER_NORM, WITHOUT_EXPERTS

NEAR = 1e-4


def trained_on(base, mode="stack", **given):
    options = Finetune(data="d", mode=mode, r=3, lora_alpha=6, **given)
    names = targets(base.checkpoint, options)
    if mode == "factors":
        return Factors.start(base, names)
    found = Stack.start(base, names, options, {})
    draw = torch.Generator().manual_seed(3)
    for key, value in found.masters.items():
        if key.endswith("lora_B"):
            value.copy_(0.05 * torch.randn(value.shape, generator=draw))
    return found


def errors(base, weights, trained, kind="memory", positions=512, lowest=0, arithmetic="float32"):
    """Relative errors of the loss, and the largest of the gradients of all weights."""
    model = FrozenModel(base.checkpoint, choose(arithmetic))
    examples, found = random_examples(), {}

    def receive(name, at_A, at_B):
        before = found.get(name, (0, 0))
        found[name] = (before[0] + at_A, before[1] + at_B)

    batches = list(micro_batches(examples, positions))
    got = sum(backward(model, b, trained.pairs, kind, receive, lowest).total for b in batches)
    again = sum(score(model, b, trained.pairs).total for b in batches)
    assert again == pytest.approx(got, rel=1e-6)
    wanted, dense = Dense(base, weights, trained.pairs).gradients(examples)
    assert found.keys() == dense.keys() == set(trained.names)
    worst = max(
        float((a - b).norm() / b.norm())
        for name in found
        for a, b in zip(found[name], dense[name], strict=True)
    )
    return abs(got - wanted) / wanted, worst


@pytest.mark.parametrize("mode", ["stack", "factors"])
@pytest.mark.parametrize("family", WITHOUT_EXPERTS)
def test_every_family_that_gguf_has(family, mode, tmp_path):
    base, weights = packed_base(tmp_path, family)
    assert max(errors(base, weights, trained_on(base, mode))) < NEAR


@pytest.mark.parametrize("family", [*LAYER_NORM, "llama"])
def test_every_family_that_only_onnx_has(family, tmp_path):
    pytest.importorskip("onnx")
    base, weights = packed_base(tmp_path, family, "onnx")
    assert max(errors(base, weights, trained_on(base))) < NEAR


def test_factors_on_an_onnx_folder(tmp_path):
    pytest.importorskip("onnx")
    base, weights = packed_base(tmp_path, "qwen3", "onnx")
    assert max(errors(base, weights, trained_on(base, "factors"))) < NEAR


@pytest.mark.parametrize(
    ("form", "factors"), [("q8_0", "q8_0"), ("q4_1", "f16"), ("iq4_nl", "f16")]
)
def test_formats_of_q_and_of_the_factors(form, factors, tmp_path):
    base, weights = packed_base(tmp_path, form=form, factors=factors, rank=32)
    assert max(errors(base, weights, trained_on(base, "factors"))) < NEAR
    assert max(errors(base, weights, trained_on(base))) < NEAR


def test_without_ggml_the_values_are_the_same(tmp_path, monkeypatch):
    base, weights = packed_base(tmp_path, rank=0)
    monkeypatch.setattr("edgepack.finetune.reader.find_spec", lambda name: None)
    assert max(errors(base, weights, trained_on(base))) < NEAR


def test_micro_batches_and_runs_of_the_vocabulary_change_nothing(tmp_path, monkeypatch):
    base, weights = packed_base(tmp_path)
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 64 * 70)
    assert max(errors(base, weights, trained_on(base), positions=1)) < NEAR


@pytest.mark.parametrize(("kind", "near"), [("disk", NEAR), ("bfloat16", 0.03), ("int4", 0.8)])
def test_where_activations_wait(kind, near, tmp_path):
    base, weights = packed_base(tmp_path)
    loss, gradient = errors(base, weights, trained_on(base), kind=kind)
    assert loss < NEAR
    assert gradient < near
    if kind != "disk":
        assert gradient > NEAR  # it says so where it is not exact


def test_only_the_modules_and_layers_that_are_named(tmp_path):
    base, weights = packed_base(tmp_path)
    trained = trained_on(base, target_modules=["q_proj", "mlp.down_proj"], layers_to_transform=[1])
    assert trained.names == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ]
    assert max(errors(base, weights, trained, lowest=1)) < NEAR
    by_pattern = Finetune(data="d", target_modules=r".*\.(k|v)_proj", layers_to_transform=[0])
    assert [name.split(".")[-2] for name in targets(base.checkpoint, by_pattern)] == [
        "k_proj",
        "v_proj",
    ]
    with pytest.raises(EdgepackError, match="no weight of the model's blocks") as refused:
        targets(base.checkpoint, Finetune(data="d", target_modules=["w_pack"]))
    assert "q_proj" in refused.value.hint


def test_dropout_leaves_out_the_same_in_both_passes(tmp_path):
    """The gradient is that of the loss with the very entries that were left out."""
    base, _ = packed_base(tmp_path)
    trained = trained_on(base, lora_dropout=0.4, target_modules=["down_proj"])
    model = FrozenModel(base.checkpoint, choose("float32"))
    (batch,) = micro_batches(random_examples()[:1], 512)
    found = {}
    backward(model, batch, trained.pairs, "memory", lambda n, a, b: found.update({n: (a, b)}))
    name = trained.names[0]
    master = trained.masters[f"{name} lora_B"]
    before = master.clone()
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(5))
    values = []
    for sign in (1, -1):
        master.copy_(before + sign * 1e-2 * direction)
        values.append(score(model, batch, trained.pairs).total)
    slope = (values[0] - values[1]) / 2e-2
    assert slope == pytest.approx(float((found[name][1] * direction).sum()), rel=2e-3)
    master.copy_(before + 1e-2 * direction)
    trained.step = 1
    assert score(model, batch, trained.pairs).total != pytest.approx(values[0], rel=1e-6)
