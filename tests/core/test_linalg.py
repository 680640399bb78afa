"""Small linear algebra against torch's own decompositions, in float64."""

import pytest
import torch

from edgepack.core import linalg
from edgepack.core.linalg import (
    NOISE,
    SLAB,
    damp,
    damped_diagonal,
    inverse_factor,
    inverse_factor_up_to_rounding,
    least_rank,
    matmul64,
    mirror,
    pack_symmetric,
    product_svd,
    top_left_singular_vectors,
    unpack_symmetric,
    upper_factor,
)
from edgepack.errors import DecompositionError

EXACT = 1e-9  # float64 on well-conditioned matrices of a few dozen columns


def gram(n: int, samples: int, seed: int = 0) -> torch.Tensor:
    """A second-moment matrix of correlated samples; singular where there are fewer than n."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    X = torch.randn(samples, n, generator=generator, dtype=torch.float64) @ mix
    return X.T @ X / samples


def square_root(H: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(H)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def test_the_inverse_factor_is_upper_and_its_gram_is_the_inverse():
    H = damp(gram(48, 500), 0.01)
    U = inverse_factor(H)
    assert torch.equal(U, U.triu())
    assert (U.diagonal() > 0).all()
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(H), rtol=EXACT, atol=EXACT)


def test_the_first_diagonal_entry_is_the_price_of_the_first_column_after_feedback():
    """1/U_00² is the Schur complement of column 0: the sweep's order, first column first."""
    H = damp(gram(16, 100), 0.01)
    schur = H[0, 0] - H[0, 1:] @ torch.linalg.solve(H[1:, 1:], H[1:, 0])
    assert inverse_factor(H)[0, 0] ** -2 == pytest.approx(float(schur), rel=EXACT)


def test_damping_is_relative_to_the_mean_diagonal():
    H = gram(20, 100)
    torch.testing.assert_close(damp(7.5 * H, 0.1), damp(H, 0.1), rtol=EXACT, atol=EXACT)
    assert float(damp(H, 0.1).diagonal().mean()) == pytest.approx(1.1, rel=EXACT)
    torch.testing.assert_close(damp(0 * H, 0.1), 1.1 * torch.eye(20, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_an_error(bad):
    H = gram(8, 50)
    H[3, 3] = bad
    with pytest.raises(DecompositionError, match="not finite"):
        damp(H, 0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_off_the_diagonal_is_an_error(bad):
    H = gram(8, 50)
    H[3, 5] = H[5, 3] = bad
    with pytest.raises(DecompositionError):
        inverse_factor(damp(H, 0.01))


def test_a_hessian_that_is_not_positive_definite_is_an_error():
    with pytest.raises(DecompositionError, match="positive definite"):
        inverse_factor(torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)))
    with pytest.raises(DecompositionError, match="positive definite"):
        inverse_factor(torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("samples", [500, 12], ids=["regular", "singular"])
@pytest.mark.parametrize(("m", "n"), [(20, 32), (32, 32), (70, 32)])
def test_top_left_singular_vectors_are_those_of_A_H_half(m, n, samples):
    A = torch.randn(m, n, generator=torch.Generator().manual_seed(1))
    H = gram(n, samples)
    rank = 5
    L = top_left_singular_vectors(A, H, rank)
    expected = torch.linalg.svd(A.double() @ square_root(H)).U[:, :rank]
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(L.T @ L, eye, rtol=0, atol=1e-8)
    # one by one, up to sign; squared singular values: half of float64's digits
    torch.testing.assert_close((L * expected).sum(0).abs(), eye.diagonal(), rtol=1e-6, atol=0)


def test_more_singular_vectors_than_the_rank_of_H_are_still_orthonormal():
    A = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    L = top_left_singular_vectors(A, gram(16, 3), 6)
    torch.testing.assert_close(L.T @ L, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_packing_a_symmetric_matrix_loses_only_float64(n):
    H = gram(n, 10).float()
    packed = pack_symmetric(H.double())
    assert packed.shape == (n * (n + 1) // 2,)
    assert packed.dtype == torch.float32
    H = H.triu() + H.triu(1).T
    assert torch.equal(unpack_symmetric(packed), H)


@pytest.mark.slow
def test_the_size_of_a_large_packed_matrix_is_recovered():
    n = 4097  # n(n+1)/2 needs more digits than float32 has
    assert unpack_symmetric(torch.zeros(n * (n + 1) // 2)).shape == (n, n)


@pytest.mark.parametrize("shape", [(9, 12, 3), (12, 9, 5), (4, 6, 8)])
def test_the_svd_of_a_product_from_its_factors(shape):
    """Against torch's of the product."""
    m, n, k = shape
    L, R = torch.randn(m, k), torch.randn(k, n)
    U, S, Vh = product_svd(L, R)
    assert torch.allclose((U * S) @ Vh, L @ R, atol=1e-4)
    assert torch.allclose(S[: min(shape)], torch.linalg.svdvals(L @ R)[: min(shape)], atol=1e-4)
    for basis in (U.T @ U, Vh @ Vh.T):
        assert torch.allclose(basis, torch.eye(len(basis)), atol=1e-4)


def test_factors_of_the_least_rank():
    L, R, new = torch.randn(9, 3), torch.randn(3, 12), torch.randn(9, 3)
    A, B = torch.cat([L, new, -L], 1), torch.cat([R, R * 2, R])  # L·R + 2·new·R − L·R
    found = least_rank(A, B)
    assert found[0].shape == (9, 3)
    assert torch.allclose(found[0] @ found[1], 2 * new @ R, atol=1e-4)
    same = least_rank(L, R)
    assert same[0] is L
    assert same[1] is R
    zero = least_rank(torch.zeros(4, 2), torch.zeros(2, 5))
    assert torch.equal(zero[0] @ zero[1], torch.zeros(4, 5))


# ------------------------------------------------------------------------ in place, by slabs

WIDE = 2 * SLAB + 77  # three slabs, the last of them narrow


def positive(n: int) -> torch.Tensor:
    return damp(gram(n, 2 * n), 0.01)


def test_wide_factors_are_made_in_place_and_are_those_of_the_formulas():
    H = positive(WIDE)
    work = H.clone()
    V = upper_factor(work)
    assert V.data_ptr() == work.data_ptr()
    assert torch.equal(V, V.triu())
    torch.testing.assert_close(V @ V.T, H, rtol=EXACT, atol=EXACT)
    work = H.clone()
    U = inverse_factor_up_to_rounding(work)
    assert U.data_ptr() == work.data_ptr()
    torch.testing.assert_close(U, torch.linalg.inv(V), rtol=1e-6, atol=EXACT)
    torch.testing.assert_close(inverse_factor(H), U, rtol=0, atol=0)


def test_a_wide_matrix_that_rounding_made_indefinite_is_mended_after_the_first_attempt():
    """The pivot that fails is in the last block to be factored, so most of H is spoilt by then."""
    H = positive(WIDE)
    H[0] = H[:, 0] = 0
    H[0, 0] = -1e-7
    U = inverse_factor_up_to_rounding(H.clone())
    expected = inverse_factor(H + NOISE * H.diagonal().mean() * torch.eye(WIDE, dtype=H.dtype))
    torch.testing.assert_close(U, expected, rtol=1e-9, atol=EXACT)
    assert torch.linalg.cholesky_ex(H).info != 0


def test_damping_in_an_order_is_damping_and_then_ordering():
    H = gram(WIDE, 2 * WIDE).float()
    order = torch.randperm(WIDE, generator=torch.Generator().manual_seed(0))
    whole = H.double() / H.double().diagonal().mean() + 0.1 * torch.eye(WIDE).double()
    assert torch.equal(damp(H, 0.1, order), whole[order][:, order])
    assert torch.equal(damp(H, 0.1, dtype=torch.float32), whole.float())
    assert torch.equal(damped_diagonal(H, 0.1), whole.diagonal())


def test_a_product_with_a_wide_float32_matrix_is_that_of_its_float64_copy():
    H = gram(WIDE, 40).float()
    A = torch.randn(3, WIDE, dtype=torch.float64)
    torch.testing.assert_close(matmul64(A, H), A @ H.double(), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("from_lower", [False, True])
def test_either_triangle_can_be_copied_to_the_other(from_lower):
    H = torch.randn(WIDE, WIDE)
    kept = H.tril() if from_lower else H.triu()
    whole = kept + (kept.tril(-1) if from_lower else kept.triu(1)).T
    assert torch.equal(mirror(H, from_lower=from_lower), whole)


@pytest.mark.parametrize("decay", [1.0, 0.3, 0.0], ids=["steep", "slow", "flat"])
@pytest.mark.parametrize(("m", "n"), [(300, 500), (500, 300)])
def test_a_krylov_space_holds_nearly_all_that_the_best_vectors_hold(monkeypatch, decay, m, n):
    """Energy of A·H^½ in the leading directions, against torch's eigenvalues."""
    generator = torch.Generator().manual_seed(2)
    rank = min(m, n)
    left, _ = torch.linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64))
    A = left * torch.arange(1, rank + 1).double() ** -decay
    A = A @ torch.randn(rank, n, generator=generator, dtype=torch.float64)
    H = gram(n, 2 * n)
    M = A @ H @ A.T
    best = float(torch.linalg.eigvalsh(M)[-8:].sum())
    monkeypatch.setattr(linalg, "LARGE", 100)
    V = top_left_singular_vectors(A, H, 8)
    torch.testing.assert_close(V.T @ V, torch.eye(8, dtype=V.dtype), rtol=0, atol=1e-10)
    assert 0.999 * best < float((V.T @ M @ V).trace()) < (1 + 1e-9) * best
    assert torch.equal(V, top_left_singular_vectors(A, H, 8))
