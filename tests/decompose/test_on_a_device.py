"""Decomposition on a device that is not the CPU (`tests/support/pretend.py`)."""

import pytest
import torch

from edgepack import formats
from edgepack.core import plugins
from edgepack.core.weights import Hessian, quadratic_cost
from edgepack.decompose.caldera import caldera
from edgepack.decompose.ldlq import metric
from edgepack.decompose.low_rank import downdate, exact_low_rank
from tests.support.pretend import CALLS, PRETEND
from tests.support.problems import correlated, weights

pytestmark = pytest.mark.pretend

COLUMNS, ROWS = 256, 40
OPTIONS = {"factors": "q8_0", "damping": (0.1,), "iterations": 1}
FLIPS = 0.25
"""What one code that flips at a tie may change the error of so small a weight by: K-quants move by
a fifth if W is changed by 1e-7."""


def hessian(*, two_sided: bool) -> Hessian:
    train, held_out = correlated(COLUMNS), correlated(COLUMNS, seed=5)
    sides = [correlated(ROWS, seed=seed) for seed in (7, 8)] if two_sided else []
    return Hessian(train, held_out, train.diagonal().clone(), *sides)


def check(name: str, H: Hessian, rank: int) -> None:
    W, fmt = weights(ROWS, COLUMNS), formats.get(name)
    CALLS.clear()
    found = caldera(W.to(PRETEND), H.to(PRETEND), fmt, rank=rank, **OPTIONS)
    wanted = caldera(W, H, fmt, rank=rank, **OPTIONS)
    assert CALLS["mm"]
    assert all(t.device == PRETEND for t in found.weight.tensors().values())
    assert found.error == pytest.approx(wanted.error, rel=FLIPS, abs=1e-12)
    assert found.error_plain == pytest.approx(wanted.error_plain, rel=FLIPS / 5, abs=1e-12)


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_every_format(name):
    check(name, hessian(two_sided=False), rank=0)


@pytest.mark.parametrize("name", ["q4_0", "q3_k", "iq3_xxs"])
def test_factors_and_two_sides(name):
    check(name, hessian(two_sided=True), rank=4)
    assert CALLS["_linalg_eigh"]  # of the search for L and R


def test_metrics_and_factors_are_those_of_the_cpu():
    H = hessian(two_sided=True)
    there = H.to(PRETEND)
    found, wanted = (metric(h.train, 32, 0.1, h.out_train) for h in (there, H))
    for side, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(getattr(found, side).cpu(), value, rtol=1e-5, atol=1e-5)
    W = weights(ROWS, COLUMNS)
    L, R = exact_low_rank(W.to(PRETEND), there.train, 4, there.out_train)
    own = exact_low_rank(W, H.train, 4, H.out_train)
    assert torch.allclose((L @ R).cpu(), own[0] @ own[1], rtol=1e-8, atol=1e-10)
    assert torch.allclose(downdate(there.train, R).cpu(), downdate(H.train, own[1]), atol=1e-8)
    cost = quadratic_cost(W.to(PRETEND), there.train, there.out_train)
    assert cost == pytest.approx(quadratic_cost(W, H.train, H.out_train), rel=1e-10)
