"""The L·R step against the optimum of the rank-constrained regression."""

import pytest
import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.linalg import top_left_singular_vectors
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.decompose.low_rank import downdate, exact_low_rank, low_rank
from edgepack.formats import factor_format

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


@pytest.mark.slow
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
    down = downdate(H.double(), r)
    assert cost(E, down) == pytest.approx(cost(E - best_L @ r, H64), rel=1e-6)  # jitter 1e-9
    assert cost(E, down) < cost(E, H64)


def test_the_downdate_is_symmetric_semidefinite_and_blind_to_R():
    _, H = problem(96, 128)
    R = torch.randn(16, 128, generator=torch.Generator().manual_seed(7))
    down = downdate(H.double(), R)
    assert torch.equal(down, down.T)
    values = torch.linalg.eigvalsh(down)
    assert values.min() > -1e-6 * values.max()
    assert (R.double() @ down).norm() < 1e-6 * (R.double() @ H.double()).norm()


# ---------------------------------------------------------------------------- the output side


def output_side(rows: int, seed: int = 3) -> Tensor:
    """H_out of correlated gradients with a few loud rows, mean diagonal 1."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(4 * rows, rows, generator=generator)
    G = G @ torch.randn(rows, rows, generator=generator)
    G[:, ::7] *= 3
    H_out = (G.T @ G).double()
    return H_out / H_out.diagonal().mean()


def damped_side(H_out: Tensor) -> Tensor:
    """H_out as edgepack takes it: 0.3 of the mean diagonal is added (`OUT_DAMPING`)."""
    H_out = H_out.double()
    H_out = torch.diag(H_out) if H_out.dim() == 1 else H_out
    return H_out + 0.3 * torch.eye(len(H_out)).double()


SIDES = {
    "none": lambda rows: None,
    "diagonal": lambda rows: output_side(rows).diagonal().contiguous(),
    "full": output_side,
}


def two_sided_cost(E: Tensor, H: Tensor, side: Tensor) -> float:
    """tr(S E H Eᵀ)."""
    E, H = E.double(), H.double()
    return float(torch.einsum("ij,ij->", side @ E, E @ H))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (80, 32), (40, 40)])
def test_exact_factors_are_the_optimum_of_eckart_and_young(side, rows, columns):
    """Of S^½ A H^½, for every rank up to the one asked for: leading rows and columns serve all."""
    A, H = problem(rows, columns)
    H_out = SIDES[side](rows)
    S = torch.eye(rows).double() if H_out is None else damped_side(H_out)
    values = torch.linalg.svdvals(root(S) @ A.double() @ root(H)).square()
    L, R = exact_low_rank(A, H, 24, H_out)
    assert (L.shape, R.shape) == ((rows, 24), (24, columns))
    for rank in (1, 5, 24):
        found = two_sided_cost(A.double() - L[:, :rank] @ R[:rank], H, S)
        assert found == pytest.approx(
            float(values[rank:].sum()), rel=1e-10, abs=1e-10 * float(values[0])
        )
    assert torch.allclose(L.T @ S @ L, torch.eye(24).double(), atol=1e-9)


@pytest.mark.parametrize("side", ["diagonal", "full"])
@pytest.mark.parametrize("factors", BOUNDS)
def test_the_product_is_nearly_the_best_of_its_rank_in_the_metric_of_both_sides(side, factors):
    A, H = problem(96, 128)
    H_out = SIDES[side](96)
    S = damped_side(H_out)
    best = float(torch.linalg.svdvals(root(S) @ A.double() @ root(H))[32:].square().sum())
    L, R = low_rank(A, H, 32, factors, H_out)
    found = two_sided_cost(A - L.dequantize() @ R.dequantize(), H, S)
    assert best * (1 - 1e-6) <= found <= best + BOUNDS[factors] * two_sided_cost(A, H, S)
    one_sided, _ = exact_low_rank(A, H, 32)
    rest = A.double() - one_sided @ one_sided.T @ A.double()
    assert best < 0.95 * two_sided_cost(rest, H, S)  # the side makes a difference here


def rounded_again(L: Tensor, gram: Tensor, factors: str, H_out: Tensor | None) -> Tensor:
    """L on the grid of `factors`, rounded in the metrics given."""
    fmt = plugins.find("formats", factors)
    return ldlq(L.float(), metric(gram, fmt.block_size, 1e-3, H_out), fmt).dequantize()


def test_each_factor_is_rounded_in_the_metric_that_its_error_meets():
    """R in H, L in R H Rᵀ and H_out: less cost than with any of them left out."""
    A, H, H_out = (*problem(96, 128), output_side(96))
    S = damped_side(H_out)
    L, R = (factor.dequantize().double() for factor in low_rank(A, H, 32, "q4_0", H_out))
    _, exact_R = exact_low_rank(A, H, 32, H_out)
    plain = rounded_again(exact_R, torch.eye(128), "q4_0", None)
    assert cost(exact_R - R, H) < 0.7 * cost(exact_R - plain, H)

    gram = R @ H.double() @ R.T
    wanted = torch.linalg.solve(gram, R @ H.double() @ A.double().T).T
    found = two_sided_cost(wanted - L, gram, S)
    assert found < 0.9 * two_sided_cost(wanted - rounded_again(wanted, gram, "q4_0", None), gram, S)
    white = rounded_again(wanted, torch.eye(32), "q4_0", H_out)
    assert found < 0.9 * two_sided_cost(wanted - white, gram, S)


@pytest.mark.parametrize("side", SIDES)
def test_L_is_the_regression_on_the_rounded_R_whatever_the_output_side(side):
    """L = A H Rᵀ (R H Rᵀ)⁻¹ to the 11 bits of f16: no other L of this R leaves less."""
    A, H = problem(96, 128)
    L, R = low_rank(A, H, 24, "q4_0", SIDES[side](96))
    r = R.dequantize().double()
    expected = torch.linalg.lstsq((r @ root(H)).T, (A.double() @ root(H)).T).solution.T
    assert (L.dequantize() - expected).abs().max() < 2**-10 * expected.abs().max()


def test_the_downdate_is_the_schur_complement_of_what_L_can_reach():
    """In a basis that begins with the rows of R, what is free is eliminated from H."""
    _, H = problem(24, 32)
    generator = torch.Generator().manual_seed(11)
    R = torch.randn(6, 32, generator=generator).double()
    basis = torch.cat([R, torch.randn(26, 32, generator=generator).double()])
    G = basis @ H.double() @ basis.T  # Gram matrix of the basis
    schur = G[6:, 6:] - G[6:, :6] @ torch.linalg.solve(G[:6, :6], G[:6, 6:])
    down = basis @ downdate(H.double(), R) @ basis.T
    assert down[:6].norm() < 1e-7 * G.norm()  # the jitter of 1e-9
    assert torch.allclose(down[6:, 6:], schur, rtol=1e-6, atol=1e-7 * float(G.norm()))
