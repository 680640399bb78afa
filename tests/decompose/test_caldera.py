"""The decomposition of one weight: what wins, by which measure, and what is said of it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.linalg import damp
from edgepack.core.weights import (
    FactoredWeight,
    Hessian,
    QuantizedTensor,
    quadratic_cost,
    relative_error,
)
from edgepack.decompose.caldera import Decomposition, caldera, next_round
from edgepack.decompose.ldlq import OUT_DAMPING, ldlq, metric
from edgepack.decompose.low_rank import downdate, low_rank

DAMPING = (0.01, 0.1)


def moments(columns: int, seed: int, samples: int = 4096, loud: int = 0) -> Tensor:
    """H of correlated inputs; `seed` draws the tokens, `loud` the directions that matter."""
    basis = torch.linalg.qr(
        torch.randn(columns, columns, generator=torch.Generator().manual_seed(100 + loud))
    ).Q
    scales = torch.arange(1, columns + 1).float() ** -0.8
    X = torch.randn(samples, columns, generator=torch.Generator().manual_seed(seed))
    X = X * scales @ basis.T
    return X.T @ X / samples


def hessian(train: Tensor, held_out: Tensor) -> Hessian:
    return Hessian(train, held_out, train.diagonal())


def weight(rows: int = 96, columns: int = 128) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.05


@cache
def decomposed(name: str, rank: int, factors: str = "f16", iterations: int = 1) -> Decomposition:
    H = hessian(moments(128, 0), moments(128, 1))
    return caldera(
        weight(),
        H,
        plugins.find("formats", name),
        rank=rank,
        factors=factors,
        damping=DAMPING,
        iterations=iterations,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q2_0", "q4_0"])
def test_a_low_rank_part_lowers_the_error_at_the_same_format(name):
    without, low, high = (decomposed(name, rank) for rank in (0, 8, 32))
    assert low.error < 0.9 * without.error
    assert high.error < 0.9 * low.error
    assert without.error < without.error_plain
    assert (without.method, low.method) == ("ldlq", "caldera")
    assert (without.weight.rank, high.weight.rank) == (0, 32)


@pytest.mark.slow
def test_quantized_factors_keep_most_of_the_gain():
    none, exact, rounded = (decomposed("q2_0", *a) for a in ((0,), (32,), (32, "q4_0")))
    assert rounded.weight.formats() == {"Q": "q2_0", "L": "q4_0", "R": "q4_0"}
    assert exact.error <= rounded.error < (none.error + exact.error) / 2


def output_side(rows: int, seed: int, samples: int = 2048) -> Tensor:
    """H_out as calibration keeps it: mean diagonal 1; a few loud rows."""
    H_out = moments(rows, seed, samples=samples, loud=3)
    H_out = H_out + torch.diag(torch.arange(rows) % 5 == 0) * H_out.diagonal().mean()
    return H_out / H_out.diagonal().mean()


def two_sided(rows: int = 96, samples: int = 400) -> Hessian:
    """What the default objective gives for a weight of a block."""
    H = hessian(moments(128, 0, samples=samples), moments(128, 1, samples=samples))
    return replace(H, out_train=output_side(rows, 2), out_held_out=output_side(rows, 4))


def error(weight: FactoredWeight, H: Hessian) -> float:
    return relative_error(W_SMALL, weight.dense(), H.held_out, H.out_held_out)


W_SMALL = weight()
RANK, FACTORS, WEAK = 16, "q4_0", 0.02


@cache
def rounds(count: int) -> list[FactoredWeight]:
    """All that CALDERA may ship after `count` rounds, made one by one."""
    H, fmt = two_sided(), plugins.find("formats", "q2_0")
    plain = ldlq(W_SMALL, metric(H.train, fmt.block_size, WEAK, H.out_train), fmt)
    rest = W_SMALL - plain.dequantize()
    found = [FactoredWeight(plain, *low_rank(rest, H.train, RANK, FACTORS, H.out_train))]
    L, R = low_rank(W_SMALL, H.train, RANK, FACTORS, H.out_train)
    for _ in range(count):
        Q, L, R = next_round(W_SMALL, H, fmt, L, R, FACTORS, WEAK)
        found.append(FactoredWeight(Q, L, R))
    return found


@pytest.mark.slow
def test_the_best_round_on_held_out_tokens_ships_and_is_not_always_the_last():
    H, fmt = two_sided(), plugins.find("formats", "q2_0")
    errors = [error(candidate, H) for candidate in rounds(6)]
    options = {"rank": RANK, "factors": FACTORS, "damping": (WEAK,)}
    best = []
    for count in range(1, 7):
        found = caldera(W_SMALL, H, fmt, iterations=count, **options)
        seen = errors[: count + 1]
        assert found.error == pytest.approx(min(seen), rel=1e-9)
        best.append(seen.index(min(seen)))
    assert any(index < count for count, index in enumerate(best, 1))
    assert len(set(best)) > 1


def test_a_round_rounds_Q_in_the_metric_that_a_free_L_leaves():
    """The cost of Q once L is fitted again for this R is tr(H_out E D Eᵀ), D the down-dated H: Q
    costs less there than one rounded in H itself, or without the output side."""
    H, fmt = two_sided(), plugins.find("formats", "q2_0")
    L, R = low_rank(W_SMALL, H.train, 32, "f16", H.out_train)
    Q, _, _ = next_round(W_SMALL, H, fmt, L, R, "f16", WEAK)
    free, rest = downdate(H.train, R.dequantize()), W_SMALL - L.dequantize() @ R.dequantize()

    def cost(Q: QuantizedTensor) -> float:
        return quadratic_cost(rest - Q.dequantize(), free, H.out_train)

    in_H = ldlq(rest, metric(H.train, 64, WEAK, H.out_train), fmt)
    one_sided = ldlq(rest, metric(free, 64, WEAK), fmt)
    assert cost(Q) < 0.5 * cost(in_H)
    assert cost(Q) < 0.4 * cost(one_sided)


def test_a_round_ends_with_the_L_and_R_of_what_Q_leaves():
    """The pair is the optimum for W − Q in H and H_out, not for W, and not that of before."""
    H, fmt = two_sided(), plugins.find("formats", "q2_0")
    before = low_rank(W_SMALL, H.train, 32, "f16", H.out_train)
    Q, L, R = next_round(W_SMALL, H, fmt, *before, "f16", WEAK)
    rest = W_SMALL - Q.dequantize()
    C = torch.linalg.cholesky(damp(H.out_train, OUT_DAMPING))
    values, vectors = torch.linalg.eigh(H.train.double())
    whole = C.T @ rest.double() @ (vectors * values.clamp_min(0).sqrt())
    best = float(torch.linalg.svdvals(whole)[32:].square().sum())
    E = rest - L.dequantize() @ R.dequantize()
    assert quadratic_cost(E, H.train, C @ C.T) == pytest.approx(best, rel=1e-4)  # f16 factors


def test_plain_rounding_with_its_own_factors_ships_where_it_is_closest():
    """W = a grid + a small matrix of low rank: rounding finds the grid and leaves the low rank for
    L·R, while the L·R of W itself, taken first, would spoil the grid."""
    H, fmt = two_sided(), plugins.find("formats", "q4_0")
    generator = torch.Generator().manual_seed(8)
    small = torch.randn(96, 4, generator=generator) @ torch.randn(4, 128, generator=generator)
    W = fmt.quantize(weight()).dequantize() + 3e-4 * small
    rounded = ldlq(W, metric(H.train, fmt.block_size, WEAK, H.out_train), fmt)
    options = {"rank": 8, "factors": "f16", "damping": (WEAK,), "iterations": 3}
    found = caldera(W, H, fmt, **options)
    assert torch.equal(found.weight.Q.codes, rounded.codes)
    plain = FactoredWeight(rounded)
    assert found.error < 0.2 * relative_error(W, plain.dense(), H.held_out, H.out_held_out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 8])
def test_errors_are_those_of_both_sides(rank):
    H, fmt = two_sided(), plugins.find("formats", "q2_0")
    options = {"rank": rank, "factors": "q8_0", "damping": (WEAK, 0.3), "iterations": 2}
    found = caldera(W_SMALL, H, fmt, **options)
    dense = found.weight.dense()
    plain = fmt.quantize(W_SMALL, H.train.diagonal()).dequantize()
    sides = H.held_out, H.out_held_out
    assert found.error == relative_error(W_SMALL, dense, *sides)
    assert found.error_train == relative_error(W_SMALL, dense, H.train, H.out_train)
    assert found.error_plain == relative_error(W_SMALL, plain, *sides)
    unweighted = fmt.quantize(W_SMALL).dequantize()
    assert found.error_plain != relative_error(W_SMALL, unweighted, *sides)
    assert found.error != relative_error(W_SMALL, dense, H.held_out)


def test_without_factors_every_damping_is_tried_on_both_sides():
    """What ships is the best of the metrics of H and H_out, on held-out tokens."""
    H, fmt = two_sided(samples=140), plugins.find("formats", "q4_0")
    dampings = (1e-4, 0.01, 0.1, 1.0)
    tried = {
        d: ldlq(W_SMALL, metric(H.train, fmt.block_size, d, H.out_train), fmt) for d in dampings
    }
    errors = {d: error(FactoredWeight(Q), H) for d, Q in tried.items()}
    found = caldera(W_SMALL, H, fmt, rank=0, factors="f16", damping=dampings, iterations=1)
    assert found.damping == min(errors, key=lambda d: errors[d]) == 0.1
    assert torch.equal(found.weight.Q.codes, tried[found.damping].codes)


def test_what_is_said_of_it_is_true():
    H = hessian(moments(128, 0), moments(128, 1))
    found = decomposed("q2_0", 16)
    dense = found.weight.dense()
    assert found.error == relative_error(weight(), dense, H.held_out)
    assert found.error_train == relative_error(weight(), dense, H.train)
    assert found.damping in DAMPING
    plain = plugins.find("formats", "q2_0").quantize(weight(), H.train.diagonal())
    assert found.error_plain == relative_error(weight(), plain.dequantize(), H.held_out)


@pytest.mark.parametrize("rank", [0, 8])
def test_held_out_tokens_refuse_what_only_the_calibration_tokens_like(rank):
    """Calibration text of five tokens that have nothing to do with the held-out ones."""
    W = weight()
    H = hessian(moments(128, 0, samples=5, loud=1), moments(128, 1, loud=2))
    found = caldera(
        W,
        H,
        plugins.find("formats", "q4_0"),
        rank=rank,
        factors="f16",
        damping=(1e-4,),
        iterations=1,
    )
    assert found.error <= found.error_plain
    assert found.weight.rank == rank  # the files have room for it, and expect it
    if rank == 0:
        assert found.method == "plain"
        assert found.damping is None
        assert found.error == found.error_plain


def test_where_plain_rounding_wins_the_weight_still_has_its_factors():
    """The files of a plan with a rank have room for L and R, and are written with them."""
    H = hessian(moments(128, 0, samples=2), torch.eye(128))
    options = {"rank": 1, "factors": "q8_0", "damping": (1e-6,), "iterations": 1}
    found = caldera(weight(), H, plugins.find("formats", "q4_0"), **options)
    assert (found.method, found.weight.rank) == ("corrected", 1)
    assert found.error < found.error_plain


def test_the_damping_is_chosen_on_held_out_tokens():
    """Few calibration tokens overfit: strong damping wins; the very same tokens: weak does."""
    dampings = (1e-3, 1.0)
    few = moments(128, 0, samples=40)

    def chosen(held_out: Tensor) -> float | None:
        H = hessian(few, held_out)
        form = plugins.find("formats", "q4_0")
        options = {"rank": 0, "factors": "f16", "damping": dampings, "iterations": 1}
        return caldera(weight(), H, form, **options).damping

    assert chosen(few) == 1e-3
    assert chosen(moments(128, 1)) == 1.0


def test_a_weight_already_in_the_format_is_kept_as_it_is():
    form = plugins.find("formats", "q4_0")
    source = form.quantize(weight())
    H = hessian(moments(128, 0), moments(128, 1))
    options = {"factors": "f16", "damping": DAMPING, "iterations": 1, "source": source}
    kept = caldera(source.dequantize(), H, form, rank=0, **options)
    assert (kept.method, kept.error, kept.error_train) == ("source", 0.0, 0.0)
    assert torch.equal(kept.weight.Q.codes, source.codes)
    other = caldera(source.dequantize(), H, plugins.find("formats", "q2_0"), rank=0, **options)
    assert other.method == "ldlq"


def test_an_unquantized_format_is_stored_as_it_is():
    H = hessian(moments(128, 0), moments(128, 1))
    form = plugins.find("formats", "f16")
    found = caldera(weight(), H, form, rank=0, factors="f16", damping=DAMPING, iterations=1)
    assert found.method == "plain"
    assert torch.equal(found.weight.dense(), weight().half().float())


def test_a_weight_already_in_the_format_leaves_nothing_for_factors():
    """The codes of the source are found again, and the factors say nothing."""
    form = plugins.find("formats", "q4_0")
    source = form.quantize(weight())
    H = hessian(moments(128, 0), moments(128, 1))
    options = {"rank": 8, "factors": "q8_0", "damping": DAMPING, "iterations": 1}
    found = caldera(source.dequantize(), H, form, source=source, **options)
    assert (found.error, found.error_train, found.weight.rank) == (0.0, 0.0, 8)
    assert torch.equal(found.weight.Q.dequantize(), source.dequantize())
    assert found.weight.L is not None
    assert torch.equal(found.weight.dense(), source.dequantize())
