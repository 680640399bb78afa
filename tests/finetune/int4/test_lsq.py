"""Learned steps against the closed form, and against autograd of a straight-through rounding."""

import math

import pytest
import torch

from edgepack.errors import RecipeError
from edgepack.finetune.int4.lsq import codes, initial_step, largest_code, quantize


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_symmetric_and_all_are_used(bits):
    Q = 2 ** (bits - 1) - 1
    assert largest_code(bits) == Q
    x = torch.linspace(-2.0, 2.0, 4001)
    assert codes(x, torch.tensor(1 / Q), bits).unique().tolist() == list(range(-Q, Q + 1))


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_an_error(bits):
    with pytest.raises(RecipeError, match=f"{bits} bits"):
        largest_code(bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_gradients_are_the_closed_form(bits, scale):
    """Esser et al., equations 3 and 5, number by number. The smaller step clamps many values."""
    x, g = random(6, 7), random(6, 7, seed=1)
    s, Q = float(scale * initial_step(x, bits)), 2 ** (bits - 1) - 1
    of_x, of_s = torch.zeros_like(x), 0.0
    for i in range(6):
        for j in range(7):
            ratio = float(x[i, j]) / s
            if abs(ratio) <= Q:
                of_x[i, j] = g[i, j]
                of_s += float(g[i, j]) * (round(ratio) - ratio)
            else:
                of_s += float(g[i, j]) * math.copysign(Q, ratio)
    X, step = x.clone().requires_grad_(), torch.tensor(s, dtype=torch.float64).requires_grad_()
    quantize(X, step, bits).backward(g)
    torch.testing.assert_close(X.grad, of_x)
    assert float(step.grad) == pytest.approx(of_s / math.sqrt(Q * x.numel()))
    assert scale == 1.0 or (of_x == 0).any()


def test_gradients_are_those_of_straight_through_rounding():
    """The same by autograd: rounding is written as adding a constant."""
    x, g, Q = random(20, 30), random(20, 30, seed=1), 7
    step = (0.4 * initial_step(x, 4)).requires_grad_()
    X = x.clone().requires_grad_()
    ratio = (X / step).clamp(-Q, Q)
    expected = step * (ratio + (ratio.round() - ratio).detach())
    expected.backward(g)
    of_x, of_step = X.grad, step.grad / math.sqrt(Q * x.numel())
    X.grad = step.grad = None
    y = quantize(X, step, 4)
    y.backward(g)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(X.grad, of_x)
    torch.testing.assert_close(step.grad, of_step)


def test_the_first_step_is_that_of_the_paper():
    x = random(5, 8)
    assert float(initial_step(x, 4)) == pytest.approx(2 * float(x.abs().mean()) / math.sqrt(7))


def test_a_learned_step_rounds_better_than_one_that_is_far_off():
    x = random(64, 64)
    step = (6 * initial_step(x, 4)).requires_grad_()
    errors = []
    for _ in range(60):
        error = (quantize(x, step, 4) - x).square().sum()
        errors.append(error.item())
        (gradient,) = torch.autograd.grad(error, step)
        with torch.no_grad():
            step -= 0.02 * gradient
    assert errors[-1] < errors[0] / 10


def test_a_negative_step_counts_as_its_magnitude():
    x = random(4, 4)
    step = initial_step(x, 4)
    negative = (-step).requires_grad_()
    positive = step.clone().requires_grad_()
    assert torch.equal(quantize(x, negative, 4), quantize(x, step, 4))
    quantize(x, negative, 4).sum().backward()
    quantize(x, positive, 4).sum().backward()
    assert float(negative.grad) == -float(positive.grad) != 0


def test_zeros_stay_zeros():
    x = torch.zeros(3, 4, requires_grad=True)
    y = quantize(x, initial_step(x, 4), 4)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(3, 4))
    assert torch.equal(x.grad, torch.ones(3, 4))
