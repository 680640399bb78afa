"""Products of a frozen matrix, against float32 and against integers multiplied as int64."""

import pytest
import torch

from edgepack.errors import EdgepackError, RecipeError
from edgepack.finetune import arithmetic
from edgepack.finetune.arithmetic import Bfloat16, Float32, Int4, Int8, choose
from edgepack.finetune.int4.hadamard import rotate
from edgepack.finetune.int8 import row_codes

TOLERANCE = {"float32": 0.0, "bfloat16": 0.01, "int8": 0.02, "int4": 0.2}
"""Relative error of a product. Rounding errors: 2^-9 for bfloat16, about 1/127/2 of a row's largest
number for int8; 4 bits leave a tenth of each operand."""
KINDS = [Float32(), Bfloat16(), Int8(), Int8(stochastic=False), Int4(), Int4(sampled=False)]


def operands(n: int = 30, out: int = 40, width: int = 96):
    random = torch.Generator().manual_seed(0)
    x, g, W = (torch.randn(s, generator=random) for s in ((n, width), (n, out), (out, width)))
    W *= torch.logspace(-1, 0, out)[:, None]  # rows of different sizes
    return x, g, W


def off(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_both_products_are_near_those_of_float32(kind):
    x, g, W = operands()
    y, dx = kind.product(x, W), kind.input_gradient(g, W)
    assert y.dtype == dx.dtype == torch.float32
    assert y.shape == (30, 40)
    assert dx.shape == (30, 96)
    tolerance = TOLERANCE[kind.name]
    assert off(y, x @ W.T) <= tolerance
    assert off(dx, g @ W) <= (2.0 if kind == Int4() else tolerance)  # sampled: see below
    assert kind.name == "float32" or off(y, x @ W.T) > 0


def test_int8_is_the_product_of_integers():
    """The one of 96 columns that holds the largest number is multiplied as it is."""
    x, g, W = operands()
    x[4, 17] = 50.0
    rest = x.clone()
    rest[:, 17] = 0
    x_codes = (rest / (rest.abs().amax(1, keepdim=True) / 127)).round().long()
    scale = W.abs().amax(1) / 127
    W_codes = (W / scale[:, None]).round().long()
    expected = (x_codes @ W_codes.T) * (rest.abs().amax(1, keepdim=True) / 127) * scale
    kind = Int8(stochastic=False)
    torch.testing.assert_close(kind.product(x, W), expected + x[:, 17:18] @ W[:, 17:18].T)
    scaled = g * scale
    g_scale = scaled.abs().amax(1, keepdim=True) / 127
    expected = ((scaled / g_scale).round().long() @ W_codes) * g_scale
    torch.testing.assert_close(kind.input_gradient(g, W), expected)


@pytest.mark.parametrize("kind", [Int8(), Int4()], ids=["int8", "int4"])
def test_the_input_gradient_is_unbiased(kind):
    """Its mean is that of a product with the rounded W."""
    _, g, W = operands(n=6, out=10, width=16)
    if kind.name == "int8":
        codes, scale = row_codes(W)
        rounded = codes * scale
    else:
        codes, step = arithmetic.rotated_codes(W)
        rounded = rotate(codes * step, 16)
    exact = g @ rounded
    draws = torch.stack([kind.input_gradient(g, W) for _ in range(1000)])
    sigma = draws.std(0) / 1000**0.5
    assert ((draws.mean(0) - exact).abs() <= 3 * sigma + 1e-5).float().mean() >= 0.98
    along = (draws * exact).sum((1, 2))
    assert abs(float(along.mean() - exact.square().sum())) <= 3 * float(along.std()) / 1000**0.5
    assert off(rounded, W) > 0.001


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_resumed_step_draws_the_same_numbers(name, monkeypatch):
    monkeypatch.setattr(arithmetic, "_multiplies_int8", lambda device: True)
    _, g, W = operands()
    whole, resumed, other = (choose(name, seed=s) for s in (1, 1, 2))
    steps = []
    for step in range(3):
        whole.start_step(step)
        steps.append([whole.input_gradient(g, W) for _ in range(2)])
    calls = steps[2]
    assert not torch.equal(*calls)
    assert not torch.equal(calls[0], steps[1][0])
    for kind, same in ((resumed, True), (other, False)):
        kind.start_step(2)
        assert torch.equal(kind.input_gradient(g, W), calls[0]) is same
        assert torch.equal(kind.input_gradient(g, W), calls[1]) is same


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible(kind, bad):
    x, g, W = operands()
    x[3, 4] = g[3, 4] = bad
    assert not kind.product(x, W)[3].isfinite().any()
    assert not kind.input_gradient(g, W)[3].isfinite().any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_zeros_stay_zeros(kind):
    x, g, W = operands()
    assert not kind.product(torch.zeros_like(x), W).any()
    assert not kind.input_gradient(torch.zeros_like(g), W).any()
    assert not kind.product(x, torch.zeros_like(W)).any()


def test_the_names_choose():
    assert choose("float32") == Float32()
    assert choose("float32").note is None
    assert "simulated" in choose("int4").note
    with pytest.raises(RecipeError, match="no arithmetic int2"):
        choose("int2")


@pytest.mark.parametrize("name", ["int8", "bfloat16"])
@pytest.mark.parametrize("test", ["_multiplies_int8", "multiplies_bfloat16"])
def test_without_instructions_there_is_an_error_or_a_fallback(name, test, monkeypatch):
    for each in ("_multiplies_int8", "multiplies_bfloat16"):
        monkeypatch.setattr(arithmetic, each, lambda device, each=each: each != test)
    if name in test:
        with pytest.raises(EdgepackError, match=name) as error:
            choose(name)
        assert "float32" in error.value.hint
        kind = choose(name, fallback=True)
        assert kind.name == "float32"
        assert kind.note.startswith(f"float32 instead of {name}")
    else:
        assert choose(name, fallback=True).name == choose(name).name == name
        assert choose(name).note is None


def test_a_product_that_overflows_is_no_int8(monkeypatch):
    """The probe sees sums that saturate at 16 bits (pytorch issue 136746), and an operator that is
    not there."""
    monkeypatch.setattr(arithmetic, "multiplies_int8", lambda: True)
    assert arithmetic._multiplies_int8(torch.device("cpu"))

    def saturating(a, b):
        return (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1)

    def missing(a, b):
        raise RuntimeError("not implemented")

    for broken in (saturating, missing):
        monkeypatch.setattr(torch, "_int_mm", broken)
        assert not arithmetic._multiplies_int8(torch.device("cpu"))
    assert not arithmetic._multiplies_int8(torch.device("meta"))
