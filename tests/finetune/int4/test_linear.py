"""The layer against torch.nn.Linear and against the paper's formulas in integers."""

import copy

import pytest
import torch

from edgepack.errors import RecipeError
from edgepack.finetune.int4 import Linear, convert
from edgepack.finetune.int4.hadamard import block_matrix

SETTINGS = [("hq", "lss"), ("hq", "split"), ("hq", "none"), ("lsq", "lss"), ("none", "lss")]


def data(n: int = 24, columns: int = 32, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 20
    return x


def layer(seed: int = 0, **options) -> Linear:
    torch.manual_seed(0)
    return Linear(32, 10, seed=seed, **options)


def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return (y * torch.linspace(-1, 1, y.shape[-1])).sum() + y.square().sum() / 2


def gradients(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(loss(model, x), [x, *model.parameters()]))


def test_without_rounding_it_is_the_linear_layer_of_torch():
    plain = torch.nn.Linear(32, 10)
    ours = Linear.from_linear(plain, quantizer="none", gradient="none")
    x = data()
    torch.testing.assert_close(ours(x), plain(x))
    for a, b in zip(gradients(ours, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(a, b)
    assert ours.weight is plain.weight
    assert ours.bias is plain.bias


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("quantizer", ["hq", "lsq"])
def test_forward_is_the_product_of_integers(quantizer, bits):
    """y = s_X s_W int(XH) int(WH)ᵀ + b with integers multiplied as int64."""
    model, x = layer(quantizer=quantizer, bits=bits), data()
    y = model(x)
    block = int(model.block)
    assert (block > 1) is (quantizer == "hq")
    H = torch.block_diag(*[block_matrix(block)] * (32 // block))
    Q = 2 ** (bits - 1) - 1
    X, W = (
        (A @ H / s).clamp(-Q, Q).round().long()
        for A, s in ((x, model.step_x), (model.weight, model.step_w))
    )
    expected = model.step_x * model.step_w * (X @ W.T) + model.bias
    agree = torch.isclose(y, expected, rtol=1e-4, atol=1e-4)
    assert agree.float().mean() > 0.99  # a number on the border of two codes may fall either way


def test_gradients_are_equation_4_of_the_paper():
    """∇W = (∇Yᵀ X̂ ∘ I_W) Hᵀ and ∇X = (I_X ∘ ∇Y Ŵ) Hᵀ, where I marks what was not clamped."""
    model, x = layer(gradient="none"), data()
    model(x)
    with torch.no_grad():  # smaller steps clamp something
        model.step_x.mul_(0.3), model.step_w.mul_(0.3)
    of_x, of_W, of_b = gradients(model, x)[:3]
    H = torch.block_diag(*[block_matrix(int(model.block))] * (32 // int(model.block)))
    with torch.no_grad():
        g = model(x) + torch.linspace(-1, 1, 10)
        (X, I_X), (W, I_W) = (
            (s * (A @ H / s).clamp(-7, 7).round(), ((A @ H / s).abs() <= 7).float())
            for A, s in ((x, model.step_x), (model.weight, model.step_w))
        )
    assert 0 < I_X.mean() < 1
    assert 0 < I_W.mean() < 1
    torch.testing.assert_close(of_x, (I_X * (g @ W)) @ H.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(of_W, (I_W * (g.T @ X)) @ H.T, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(of_b, g.sum(0))


def test_the_hadamard_quantizer_rounds_outliers_better():
    x = data(64)
    plain = layer(quantizer="none", gradient="none")
    errors = {}
    for quantizer in ("hq", "lsq"):
        model = Linear.from_linear(plain, quantizer=quantizer)
        errors[quantizer] = float((model(x) - plain(x)).detach().norm())
    assert errors["hq"] < errors["lsq"] / 2


def test_int8_is_nearly_float32():
    """Steps are those that learning starts from: √Q in their formula makes them coarse at 8 bits
    (range 18σ for normal numbers), so errors are a few percent."""
    x = data(64)
    plain = layer(quantizer="none", gradient="none")
    model = Linear.from_linear(plain, bits=8, gradient="split")
    assert (model(x) - plain(x)).norm() < 0.05 * plain(x).norm()
    for a, b in zip(gradients(model, x)[:2], gradients(plain, x)[:2], strict=True):
        assert (a - b).norm() < 0.06 * b.norm()


def test_sampled_gradients_have_the_mean_of_those_not_sampled():
    """Of x, W and both steps, over batches that are numbered differently."""
    exact_model, x = layer(gradient="none"), data()
    exact = torch.cat([g.flatten() for g in gradients(exact_model, x)])
    model = layer()
    draws = torch.stack([torch.cat([g.flatten() for g in gradients(model, x)]) for _ in range(500)])
    sigma = draws.std(0) / 500**0.5
    within = (draws.mean(0) - exact).abs() <= 3 * sigma + 1e-4 * exact.abs()
    assert within.float().mean() >= 0.99
    along = draws @ exact / exact.norm()
    assert abs(float(along.mean() - exact.norm())) <= 3 * float(along.std()) / 500**0.5
    assert float(along.std()) > 0


@pytest.mark.parametrize(("quantizer", "gradient"), SETTINGS)
def test_a_loaded_layer_goes_on_where_the_saved_one_stopped(quantizer, gradient):
    options = {"quantizer": quantizer, "gradient": gradient, "seed": 3}
    model, x = layer(**options), data()
    for i in range(3):
        gradients(model, data(seed=1 + i))
    with torch.no_grad():  # as if an optimizer had moved the parameters
        for parameter in model.parameters():
            parameter.mul_(1.1)
    state = copy.deepcopy(model.state_dict())
    resumed = Linear(32, 10, **options)
    assert not torch.equal(copy.deepcopy(resumed)(x), model.eval()(x))
    resumed.load_state_dict(state)
    assert torch.equal(model.eval()(x), resumed.eval()(x))
    model.train(), resumed.train()
    for a, b in zip(gradients(model, x), gradients(resumed, x), strict=True):
        assert torch.equal(a, b)


def test_sampling_drops_rows_that_splitting_keeps():
    x = data()
    layers = [layer(gradient=kind) for kind in ("none", "split", "lss")]
    exact, split, sampled = (gradients(each, x)[0] for each in layers)
    errors = [(each - exact).norm(dim=1) for each in (split, sampled)]
    assert (errors[0] < 0.5 * exact.norm(dim=1)).all()
    assert (errors[1] > 0.5 * exact.norm(dim=1)).any()


def test_random_numbers_follow_from_the_seed_and_change_with_every_batch():
    x = data()
    first, same, other = layer(seed=1), layer(seed=1), layer(seed=2)
    one, two = gradients(first, x)[0], gradients(first, x)[0]
    assert torch.equal(one, gradients(same, x)[0])
    assert not torch.equal(one, two)
    assert not torch.equal(one, gradients(other, x)[0])


def test_steps_are_estimated_anew_until_the_warm_up_ends():
    model = layer(warm_up=2)
    steps = []
    for factor in (1, 2, 4):
        model(factor * data())
        steps.append(float(model.step_x.detach()))
    assert steps[1] == pytest.approx(2 * steps[0])
    assert steps[2] == steps[1]


def test_a_frozen_weight_gets_no_gradient_and_the_input_gets_its_own():
    model, x = layer(), data().requires_grad_()
    model.weight.requires_grad_(False)
    loss(model, x).backward()
    assert model.weight.grad is None
    assert float(x.grad.norm()) > 0


def test_bfloat16_is_rounded_in_float32():
    model, x = layer(), data().bfloat16()
    model(x.float())
    half = copy.deepcopy(model).bfloat16()
    model.load_state_dict({k: v.to(model.state_dict()[k]) for k, v in half.state_dict().items()})
    y = half(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, model(x.float()).bfloat16())
    half_gradients = gradients(half, x)
    assert all(g.dtype == torch.bfloat16 for g in half_gradients)
    exact = gradients(model, x.float())[0]
    assert (half_gradients[0].float() - exact).norm() < 0.05 * exact.norm()


def test_leading_dimensions_are_kept():
    model = layer(bias=False).eval()
    x = data(24)
    y = model(x)
    assert torch.equal(model(x.view(2, 3, 4, 32)), y.view(2, 3, 4, 10))


def test_a_model_is_converted_but_for_the_layers_to_keep():
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.nn.Linear(8, 2)
    )
    assert convert(model, keep=("2",), seed=5, bits=6) == ["0", "1.0"]
    assert type(model[2]) is torch.nn.Linear
    assert [model[0].seed, model[1][0].seed] == [5, 6]
    assert "bits=6" in repr(model)
    assert convert(model) == ["2"]


@pytest.mark.parametrize(("quantizer", "gradient"), SETTINGS)
def test_it_learns_a_linear_map(quantizer, gradient):
    """Loss falls to what 4-bit inputs and weights leave, in each setting."""
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    target = x @ torch.randn(32, 10, generator=torch.Generator().manual_seed(2)) / 32**0.5
    model = layer(quantizer=quantizer, gradient=gradient)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        error = (model(x) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantizer": "luq"}, "quantizer is luq"),
        ({"gradient": "luq"}, "gradient is luq"),
        ({"bits": 1}, "1 bits"),
    ],
)
def test_what_does_not_exist_is_an_error(options, message):
    with pytest.raises(RecipeError, match=message):
        Linear(4, 4, **options)
