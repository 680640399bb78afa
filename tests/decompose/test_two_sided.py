"""Error feedback into later rows as well as later columns, against the same done element by element
on the Kronecker product itself."""

import pytest
import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.linalg import damp, inverse_factor
from edgepack.core.weights import Grid
from edgepack.decompose import ldlq as module
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.formats._scalar import OneScale


def correlated(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(8 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    X[:, 0] *= 3
    return X.T @ X / len(X)


def weights(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.05


def cost(E: Tensor, H_out: Tensor, H: Tensor) -> float:
    """tr(H_out E H Eᵀ)."""
    return float(torch.einsum("ij,ij->", H_out.double() @ E.double() @ H.double(), E.double()))


@pytest.fixture
def fixed_scale(monkeypatch: pytest.MonkeyPatch) -> OneScale:
    """q4_0 that always proposes the scale 1/64: codes then depend on the feedback alone."""
    fmt = plugins.find("formats", "q4_0")

    def propose(x: Tensor, importance: Tensor) -> Grid:
        return {"d": torch.full((len(x), 1), 1 / 64, dtype=torch.float16)}

    monkeypatch.setattr(fmt, "candidates", propose, raising=False)
    return fmt


def test_it_is_gptq_on_the_kronecker_product(
    fixed_scale: OneScale, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_TILE", 4)
    W, H, H_out = weights(10, 64), correlated(64, 1), correlated(10, 2)
    m = metric(H, 32, 0.01, H_out)
    found = ldlq(W, m, fixed_scale, passes=0).dequantize()

    H, H_out = damp(H, 0.01), damp(H_out, module.OUT_DAMPING)
    order = (m.columns[:, None] * 10 + m.rows[None, :]).flatten()  # of W's columns, stacked
    U = inverse_factor(torch.kron(H, H_out)[order][:, order])
    left = W.T.flatten()[order].double()
    for i in range(len(left)):
        wanted = (left[i] * 64).round().clamp(-8, 7) / 64
        left[i + 1 :] -= (left[i] - wanted) / U[i, i] * U[i, i + 1 :]
        left[i] = wanted
    expected = torch.empty(640, dtype=torch.float64).index_put((order,), left).view(64, 10).T
    assert (found != expected).float().mean() < 0.005  # float32 ties


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q2_0", "q2_k", "q3_k"])
def test_it_beats_feedback_into_columns_alone(name: str):
    fmt = plugins.find("formats", name)
    W, H, H_out = weights(80, 256), correlated(256, 1), correlated(80, 2)
    one = W - ldlq(W, metric(H, fmt.block_size, 0.01), fmt).dequantize()
    two = W - ldlq(W, metric(H, fmt.block_size, 0.01, H_out), fmt).dequantize()
    assert cost(two, H_out, H) < 0.8 * cost(one, H_out, H)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q3_k"])
def test_coordinate_descent_only_lowers_the_cost(name: str):
    fmt = plugins.find("formats", name)
    W, H, H_out = weights(80, 256), correlated(256, 1), correlated(80, 2)
    m = metric(H, fmt.block_size, 0.01, H_out)
    costs = [
        cost(
            W - ldlq(W, m, fmt, passes).dequantize(),
            damp(H_out, module.OUT_DAMPING),
            damp(H, 0.01),
        )
        for passes in (0, 1, 2)
    ]
    assert costs[0] > costs[1] >= costs[2]


def test_an_identity_on_the_output_side_changes_nothing(fixed_scale: OneScale):
    W, H = weights(70, 64), correlated(64, 1)
    one = ldlq(W, metric(H, 32, 0.01), fixed_scale)
    two = ldlq(W, metric(H, 32, 0.01, torch.eye(70)), fixed_scale)
    assert torch.equal(one.codes, two.codes)


def test_the_order_is_by_descending_diagonal_on_both_sides():
    m = metric(correlated(64, 1), 32, 0.01, correlated(70, 2))
    assert sorted(m.rows.tolist()) == list(range(70))
    assert (m.H_out.diagonal().diff() <= 0).all()
    assert (m.H.diagonal()[m.columns].view(2, 32).diff(dim=1) <= 0).all()


def test_the_output_side_is_damped_by_three_tenths_of_its_mean():
    H_out = correlated(70, 2)
    m = metric(correlated(64, 1), 32, 0.01, H_out)
    assert float(m.H_out.diagonal().mean()) == pytest.approx(1.3, rel=1e-6)
    back = m.rows.argsort()
    expected = H_out.double() / H_out.double().diagonal().mean() + 0.3 * torch.eye(70).double()
    assert torch.allclose(m.H_out[back][:, back].double(), expected, atol=1e-5)
    inverse = m.U_out.double().T @ m.U_out.double()
    assert torch.allclose(inverse, torch.linalg.inv(m.H_out.double()), atol=1e-4)


def test_so_damped_few_gradients_do_not_mislead():
    """An H_out of 40 gradients for 80 outputs: what is rounded against it with a hundredth of the
    damping hides errors where other gradients find them."""
    fmt = plugins.find("formats", "q2_0")
    W, H = weights(80, 256), correlated(256, 1)
    mix = torch.randn(80, 80, generator=torch.Generator().manual_seed(2))
    few, true = (
        (G.T @ G / len(G))
        for n in (40, 4000)
        for G in [torch.randn(n, 80, generator=torch.Generator().manual_seed(n)) @ mix]
    )
    costs = {}
    for damping in (module.OUT_DAMPING, module.OUT_DAMPING / 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "OUT_DAMPING", damping)
            Q = ldlq(W, metric(H, fmt.block_size, 0.01, few), fmt).dequantize()
        costs[damping] = cost(W - Q, true, H)
    assert costs[module.OUT_DAMPING] < 0.8 * costs[module.OUT_DAMPING / 100]
