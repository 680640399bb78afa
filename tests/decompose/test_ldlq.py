"""LDLQ against the identities it rests on, and against plain rounding."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.weights import Grid, QuantizedTensor
from edgepack.decompose import ldlq as module
from edgepack.decompose._rounders import rounder
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.formats._scalar import Scalar
from tests.support.problems import correlated, cost, weights

FORMATS = ["q4_0", "q4_1", "q2_0", "q8_0", "iq4_nl", "q2_k", "q3_k", "q4_k", "q6_k"]
FORMATS += ["iq4_xs", "mxfp4", "tq2_0", "q1_0"]
FEEDS_BACK = ["q4_0", "q2_0", "q2_k", "q3_k", "iq4_xs", "mxfp4", "tq2_0", "q1_0"]


def form(name: str) -> Scalar:
    return plugins.find("formats", name)


class Case(NamedTuple):
    """What the tests of one format share: two blocks of correlated columns, or more."""

    fmt: Scalar
    W: Tensor
    m: module.Metric
    plain: Tensor


@cache
def case(name: str) -> Case:
    fmt = form(name)
    columns = max(256, 2 * fmt.block_size)
    W, H = weights(12, columns), correlated(columns)
    plain = fmt.quantize(W, H.diagonal()).dequantize()
    return Case(fmt, W, metric(H, fmt.block_size, 0.01), plain)


@cache
def swept(name: str, passes: int) -> QuantizedTensor:
    fmt, W, m, _ = case(name)
    return ldlq(W, m, fmt, passes)


def columnwise_cost(W: Tensor, q: QuantizedTensor, m: module.Metric) -> float:
    """Σ_j ((W_j − Q_j)/U_jj)² of a textbook GPTQ sweep in float64 that makes the choices of q."""
    left, Q, U = (t.double() for t in (W[:, m.columns], q.dequantize()[:, m.columns], m.U))
    left, total = left.clone(), 0.0
    for j in range(left.shape[1]):
        error = (left[:, j] - Q[:, j]) / U[j, j]
        total += float(error.square().sum())
        left[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
    return total


def textbook(W: Tensor, m: module.Metric, fmt: Scalar, q: QuantizedTensor) -> Tensor:
    """GPTQ column by column in float64 on the grid of q; returns Q."""
    scale, offset = (t.double() for t in fmt.affine(q.grid))
    left, Q = W.double().clone(), torch.zeros(W.shape, dtype=torch.float64)
    U = m.U.double()
    for j, c in enumerate(m.columns.tolist()):
        values = scale[:, c, None] * fmt.levels.double() + offset[:, c, None]
        nearest = (values - left[:, c, None]).abs().argmin(1, keepdim=True)
        Q[:, c] = values.gather(1, nearest)[:, 0]
        error = (left[:, c] - Q[:, c]) / U[j, j]
        left[:, m.columns[j + 1 :]] -= error[:, None] * U[j, j + 1 :]
    return Q


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_sweep_costs_what_its_own_identity_says(name):
    _, W, m, _ = case(name)
    q = swept(name, 0)
    direct = cost(W - q.dequantize(), m.H)
    assert columnwise_cost(W, q, m) == pytest.approx(direct, rel=1e-3)  # U in float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q2_0", "q3_k", "q4_1"])
def test_the_sweep_makes_the_choices_of_a_textbook_gptq_on_its_grid(name):
    fmt, W, m, _ = case(name)
    q = swept(name, 0)
    expected = textbook(W, m, fmt, q)
    same = torch.isclose(q.dequantize().double(), expected, rtol=1e-5, atol=1e-7)
    # a tie that float32 breaks the other way sends the rest of its row another, equally good, way
    assert same.all(1).float().mean() > 0.7
    assert cost(W - q.dequantize(), m.H) == pytest.approx(cost(W - expected, m.H), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_it_never_costs_more_than_plain_rounding(name):
    _, W, m, plain = case(name)
    found = cost(W - swept(name, 2).dequantize(), m.H)
    assert found <= cost(W - plain, m.H) * (0.75 if name in FEEDS_BACK else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_coordinate_descent_never_costs_more(name):
    _, W, m, _ = case(name)
    costs = [cost(W - swept(name, passes).dequantize(), m.H) for passes in range(3)]
    for before, after in pairwise(costs):
        assert after <= before * (1 + 1e-6)  # float32 gradients
    assert costs[2] < costs[0] or name == "q8_0"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q2_k", "iq4_xs"])
def test_every_round_of_descent_counts(name):
    """Rounds go on from one another until nothing changes."""
    _, W, m, _ = case(name)
    costs = [cost(W - swept(name, passes).dequantize(), m.H) for passes in (0, 1, 2)]
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q2_0", "q2_k"])
def test_scales_are_fitted_to_the_cost_that_feedback_leaves(name, monkeypatch):
    """Importances are 1/U_jj², the Schur complements of the columns, in the order of storage."""
    fmt, W, m, _ = case(name)
    seen = []
    propose = fmt.candidates

    def candidates(x: Tensor, importance: Tensor) -> Grid:
        seen.append(importance)
        return propose(x, importance)

    monkeypatch.setattr(fmt, "candidates", candidates, raising=False)
    ldlq(W, m, fmt, passes=0)
    H, order = m.H.double(), m.columns
    for index, importance in enumerate(seen):
        first = index * fmt.block_size
        for place, column in enumerate(order[first : first + fmt.block_size].tolist()):
            later = order[first + place + 1 :]
            free = torch.linalg.solve(H[later][:, later], H[later, column])
            price = H[column, column] - H[column, later] @ free
            found = importance[column % fmt.block_size]
            assert float(found) == pytest.approx(float(price), rel=1e-3)  # U in float32


@pytest.mark.parametrize("name", ["iq2_xs", "iq3_s"])
def test_a_group_of_columns_is_as_important_as_its_errors_are_after_feedback(name):
    """The diagonal of what is left of H for the group when all later columns make up for it."""
    fmt = form(name)
    H = correlated(fmt.block_size)
    m = metric(H, fmt.block_size, 0.01, group=fmt.group)
    found = rounder(fmt).importance(m.U)
    ordered = m.H.double()[m.columns][:, m.columns]
    for start in range(0, fmt.block_size, fmt.group):
        here, later = slice(start, start + fmt.group), slice(start + fmt.group, None)
        schur = ordered[here, here] - ordered[here, later] @ torch.linalg.solve(
            ordered[later, later], ordered[later, here]
        )
        assert torch.allclose(found[here].double(), schur.diagonal(), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q2_0", "iq4_nl", "q2_k"])
def test_without_correlation_it_is_plain_rounding(name):
    fmt, W, _, _ = case(name)
    m = metric(torch.eye(W.shape[1]), fmt.block_size, 0.01)
    found = cost(W - ldlq(W, m, fmt, passes=1).dequantize(), m.H)
    plain = cost(W - fmt.quantize(W).dequantize(), m.H)
    assert found == pytest.approx(plain, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q2_k"])
def test_rows_are_independent(name, monkeypatch):
    fmt, W, H = form(name), weights(40, 256), correlated(256)
    m = metric(H, fmt.block_size, 0.01)
    q = ldlq(W, m, fmt)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    again = ldlq(W[order], m, fmt)
    assert_equal(again, q.permute_rows(order))
    monkeypatch.setattr(module, "_ROWS", 16)
    assert_equal(ldlq(W, m, fmt), q)


def assert_equal(a: QuantizedTensor, b: QuantizedTensor) -> None:
    """Equal but for float32 sums that come out differently for another number of rows."""
    assert (a.dequantize() != b.dequantize()).any(1).float().mean() < 0.1
    assert a.shape == b.shape
    assert all(a.grid[field].shape == b.grid[field].shape for field in b.grid)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["q4_0", "q4_1", "q5_0", "q8_0", "iq4_nl", "q2_0", "mxfp4", "tq2_0", "q1_0"]
)
def test_weights_on_a_grid_stay_exact(name):
    """What a stock quantizer has rounded is found again: the grid is among the candidates."""
    fmt, H = form(name), correlated(256)
    W = fmt.quantize(weights(32, 256)).dequantize()
    q = ldlq(W, metric(H, fmt.block_size, 0.01), fmt)
    assert torch.equal(q.dequantize(), W)


def test_columns_are_taken_by_blocks_in_descending_weight():
    H = torch.diag(torch.arange(96.0) % 7 + torch.arange(96.0))
    columns = metric(H, 32, 0.01).columns
    assert sorted(columns.tolist()) == list(range(96))
    blocks = columns.view(3, 32) // 32
    assert torch.equal(blocks[:, :1].expand(3, 32), blocks)
    assert blocks[:, 0].tolist() == [2, 1, 0]
    inside = H.diagonal()[columns].view(3, 32)
    assert (inside.diff(dim=1) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q2_k"])
def test_dead_columns_and_zero_rows_do_no_harm(name):
    fmt, W, H = form(name), weights(8, 256), correlated(256)
    H[:, 10:50] = 0
    H[10:50] = 0
    W[3] = 0
    q = ldlq(W, metric(H, fmt.block_size, 0.01), fmt).dequantize()
    assert torch.isfinite(q).all()
    assert torch.equal(q[3], torch.zeros(256))


def test_a_zero_hessian_rounds_plainly():
    fmt, W = form("q4_0"), weights(8, 64)
    q = ldlq(W, metric(torch.zeros(64, 64), 32, 0.01), fmt)
    plain = fmt.quantize(W)
    eye = torch.eye(64)
    assert cost(W - q.dequantize(), eye) <= cost(W - plain.dequantize(), eye) * 1.03
