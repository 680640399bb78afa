"""The L·R step against the optimum of the rank-constrained regression."""

import pytest
import torch
from torch import Tensor

from edgepack.decompose.low_rank import downdate, factor_format, low_rank
from edgepack.linalg import top_left_singular_vectors

# cost above the optimum's over the cost of no factors at all; measured: 7e-8, 1.4e-5, 5.6e-3
BOUNDS = {"f16": 1e-6, "q8_0": 3e-5, "q4_0": 8e-3}


def problem(rows: int, columns: int, samples: int = 2000) -> tuple[Tensor, Tensor]:
    """(A, H): a matrix with a decaying spectrum, and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    rank = min(rows, columns)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, columns, generator=generator)
    A = left * torch.arange(1, rank + 1).float() ** -1.0 @ right
    X = torch.randn(samples, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return A, X.T @ X / samples


def cost(E: Tensor, H: Tensor) -> float:
    E, H = E.double(), H.double()
    return float(torch.einsum("ij,ij->", E @ H, E))


def root(H: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(H.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def optimum(A: Tensor, H: Tensor, rank: int) -> float:
    """What Eckart and Young leave of A·H^½."""
    return float(torch.linalg.svdvals(A.double() @ root(H))[rank:].square().sum())


@pytest.mark.parametrize("factors", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("rows", "columns"), [(96, 128), (192, 64)])
def test_the_product_is_nearly_the_best_of_its_rank(factors, rows, columns):
    A, H = problem(rows, columns)
    L, R = low_rank(A, H, 32, factors)
    assert (L.format, R.format) == (factors, factors)
    assert (L.shape, R.shape) == ((rows, 32), (32, columns))
    found = cost(A - L.dequantize() @ R.dequantize(), H)
    best = optimum(A, H, 32)
    assert best * (1 - 1e-6) <= found <= best + BOUNDS[factors] * cost(A, H)


@pytest.mark.parametrize("factors", ["q8_0", "q4_0"])
def test_rounding_the_factors_in_turn_beats_rounding_both(factors):
    A, H = problem(96, 128)
    L, R = low_rank(A, H, 32, factors)
    fmt, exact = L.plugin, top_left_singular_vectors(A, H, 32)
    both = [fmt.quantize(f.float()).dequantize() for f in (exact, exact.T @ A.double())]
    best = optimum(A, H, 32)
    excess = cost(A - L.dequantize() @ R.dequantize(), H) - best
    assert excess < 0.6 * (cost(A - both[0] @ both[1], H) - best)


def test_a_singular_hessian_is_harmless():
    A, H = problem(96, 128, samples=20)
    L, R = low_rank(A, H, 16, "f16")
    assert torch.isfinite(L.dequantize() @ R.dequantize()).all()
    assert cost(A - L.dequantize() @ R.dequantize(), H) <= optimum(A, H, 16) * 1.001
    L, R = low_rank(A, H, 32, "f16")  # more than the rank of H: nothing is left
    assert cost(A - L.dequantize() @ R.dequantize(), H) < 1e-5 * cost(A, H)  # f16 factors


def test_L_solves_the_normal_equations_of_the_rounded_R():
    A, H = problem(96, 128)
    for factors in ("q4_0", "q8_0"):
        _, R = low_rank(A, H, 24, factors)  # 24 columns of L: f16, no blocks
        L, again = low_rank(A, H, 24, factors)
        assert L.format == "f16"
        assert torch.equal(R.dequantize(), again.dequantize())
        r, H64 = R.dequantize().double(), H.double()
        residual = (A.double() - L.dequantize().double() @ r) @ H64 @ r.T
        assert residual.norm() < 1e-3 * (A.double() @ H64 @ r.T).norm()  # f16 has 11 bits


def test_factors_fall_back_to_f16_where_blocks_do_not_fit():
    assert factor_format("q8_0", 24) == "f16"
    assert factor_format("q8_0", 32) == "q8_0"
    assert factor_format("f16", 24) == "f16"
    A, H = problem(40, 48)
    L, R = low_rank(A, H, 8, "q4_0")
    assert (L.format, R.format) == ("f16", "f16")


@pytest.mark.parametrize("zero", ["A", "H"])
def test_nothing_to_correct_gives_finite_factors(zero):
    A, H = problem(64, 64)
    A, H = (0 * A, H) if zero == "A" else (A, 0 * H)
    for factors in ("f16", "q8_0"):
        L, R = low_rank(A, H, 32, factors)
        assert torch.isfinite(L.dequantize() @ R.dequantize()).all()


def test_the_downdate_is_the_cost_with_L_fitted_freely():
    A, H = problem(96, 128)
    _, R = low_rank(A, H, 16, "f16")
    r, H64 = R.dequantize().double(), H.double()
    E = torch.randn(30, 128, generator=torch.Generator().manual_seed(7)).double()
    best_L = torch.linalg.lstsq((r @ root(H)).T, (E @ root(H)).T).solution.T
    down = downdate(H, r)
    assert cost(E, down) == pytest.approx(cost(E - best_L @ r, H64), rel=1e-6)  # jitter 1e-9
    assert cost(E, down) < cost(E, H64)


def test_the_downdate_is_symmetric_semidefinite_and_blind_to_R():
    _, H = problem(96, 128)
    R = torch.randn(16, 128, generator=torch.Generator().manual_seed(7))
    down = downdate(H, R)
    assert torch.equal(down, down.T)
    values = torch.linalg.eigvalsh(down)
    assert values.min() > -1e-6 * values.max()
    assert (R.double() @ down).norm() < 1e-6 * (R.double() @ H.double()).norm()
