"""The least disagreement of several weights, against brute force and against properties of it."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from edgepack.merge.fisher.choose import choose
from edgepack.merge.fisher.solve import Term, closed_form, conjugate_gradients, cost

OUT, IN = 5, 7


def symmetric(draw, n, rank=None):
    X = torch.randn(rank or 2 * n, n, generator=draw, dtype=torch.float64)
    return X.T @ X / len(X)


def problem(seed=0, models=3, output_side=True):
    """Terms whose E are the differences to their weighted mean."""
    draw = torch.Generator().manual_seed(seed)
    weights = [0.5, 1.0, 2.0][:models]
    values = [torch.randn(OUT, IN, generator=draw, dtype=torch.float64) for _ in weights]
    mean = sum(w * V for w, V in zip(weights, values, strict=True)) / sum(weights)
    terms = []
    for w, V in zip(weights, values, strict=True):
        G = symmetric(draw, OUT) if output_side else None
        terms.append(Term(V - mean, symmetric(draw, IN), G, w))
    return terms


def dense(terms, damping):
    """D of the equation in Kronecker products: (Σ w H ⊗ G + δμ) vec D = Σ w vec(G E H)."""
    n = OUT * IN
    left, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for t in terms:
        G = torch.eye(OUT, dtype=torch.float64) if t.G is None else t.G
        left += t.weight * torch.kron(G, t.H)
        right += t.weight * (G @ t.E @ t.H).flatten()
    left += damping * left.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    return torch.linalg.solve(left, right).view(OUT, IN)


def last(steps, count):
    return list(islice(steps, count))[-1]


@pytest.mark.parametrize("damping", [1e-3, 0.1, 1.0])
def test_the_closed_form_is_that_of_a_dense_solve(damping):
    terms = problem(output_side=False)
    expected = dense(terms, damping)
    assert torch.allclose(closed_form(terms, damping), expected, atol=1e-10)


@pytest.mark.parametrize("models", [2, 3])
def test_conjugate_gradients_come_to_what_a_dense_solve_finds(models):
    terms = problem(models=models)
    D, residual = last(conjugate_gradients(terms, 1e-2), OUT * IN)
    assert residual < 1e-8
    assert torch.allclose(D, dense(terms, 1e-2), atol=1e-7)


def test_the_minimum_is_one():
    """Brute force: no step in any direction, and no random one, costs less."""
    terms = problem()
    D, _ = last(conjugate_gradients(terms, 1e-9), OUT * IN)
    least = cost(D, terms)
    for i in range(OUT * IN):
        for size in (-1e-3, 1e-3):
            moved = D.clone()
            moved.view(-1)[i] += size
            assert cost(moved, terms) > least
    assert cost(torch.zeros_like(D), terms) > 1.05 * least


def test_one_step_is_enough_where_the_metrics_are_alike():
    """The preconditioner is exact there, up to its damping: the result is the mean of all E."""
    terms = problem()
    same = [Term(t.E + 1.0, terms[0].H, terms[0].G, t.weight) for t in terms]
    D, residual = next(conjugate_gradients(same, 1e-12))
    assert residual < 1e-4
    assert torch.allclose(D, torch.ones_like(D), atol=1e-3)


def test_diagonal_metrics_are_fisher_merging():
    """Σ w F θ / Σ w F of every element (Matena & Raffel, eq. 3)."""
    terms = problem()
    terms = [Term(t.E, t.H.diagonal().diag(), t.G.diagonal().diag(), t.weight) for t in terms]
    F = [t.weight * torch.outer(t.G.diagonal(), t.H.diagonal()) for t in terms]
    expected = sum(f * t.E for f, t in zip(F, terms, strict=True)) / sum(F)
    D, _ = last(conjugate_gradients(terms, 1e-12), OUT * IN)
    assert torch.allclose(D, expected, atol=1e-6)


@pytest.mark.parametrize("output_side", [False, True])
def test_inputs_in_subspaces_of_their_own_are_kept_exactly(output_side):
    """RegMean's point: what one model never sees is free for the other."""
    draw = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(IN, IN, generator=draw, dtype=torch.float64)).Q
    parts = basis[:, :3], basis[:, 3:]
    first, second = (torch.randn(OUT, IN, generator=draw, dtype=torch.float64) for _ in range(2))
    mean = (first + second) / 2
    terms = []
    for V, part in zip((first, second), parts, strict=True):
        G = symmetric(draw, OUT) if output_side else None
        terms.append(Term(V - mean, part @ part.T, G, 0.5))
    if output_side:
        D, _ = last(conjugate_gradients(terms, 1e-9), 200)
    else:
        D = closed_form(terms, 0.0)
    W = mean + D
    assert torch.allclose(W @ parts[0], first @ parts[0], atol=1e-5)
    assert torch.allclose(W @ parts[1], second @ parts[1], atol=1e-5)


@pytest.mark.parametrize("output_side", [False, True])
def test_equal_models_stay_what_they_are(output_side):
    terms = problem(output_side=output_side)
    same = [Term(torch.zeros_like(t.E), t.H, t.G, t.weight) for t in terms]
    assert not choose(same, same).D.any()


@pytest.mark.parametrize("output_side", [False, True])
def test_held_out_tokens_decide(output_side):
    terms = problem(output_side=output_side)
    found = choose(terms, terms)
    assert found.cost < found.plain
    assert found.cost == pytest.approx(cost(found.D.double(), terms), rel=1e-4)
    contrary = [Term(torch.zeros_like(t.E), t.H, t.G, t.weight) for t in terms]
    stayed = choose(terms, contrary)  # held out, the plain mean costs nothing
    assert not stayed.D.any()
    assert stayed.cost == stayed.plain == 0


def test_a_model_with_nothing_at_stake_does_no_harm():
    terms = problem(models=2)
    silent = Term(terms[1].E, torch.zeros(IN, IN), torch.zeros(OUT, OUT), 1.0)
    found = choose([terms[0], silent], [terms[0], silent])
    assert torch.isfinite(found.D).all()
    assert found.cost < 0.01 * found.plain
    assert torch.isfinite(choose([silent, silent], [silent, silent]).D).all()
