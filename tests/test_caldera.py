"""The decomposition of one weight: what wins, by which measure, and what is said of it."""

from functools import cache

import pytest
import torch
from torch import Tensor

from edgepack import plugins
from edgepack.decompose.caldera import Decomposition, caldera
from edgepack.weights import Hessian, relative_error

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


@pytest.mark.parametrize("name", ["q2_0", "q4_0"])
def test_a_low_rank_part_lowers_the_error_at_the_same_format(name):
    without, low, high = (decomposed(name, rank) for rank in (0, 8, 32))
    assert low.error < 0.9 * without.error
    assert high.error < 0.9 * low.error
    assert without.error < without.error_plain
    assert (without.method, low.method) == ("ldlq", "caldera")
    assert (without.weight.rank, high.weight.rank) == (0, 32)


def test_quantized_factors_keep_most_of_the_gain():
    none, exact, rounded = (decomposed("q2_0", *a) for a in ((0,), (32,), (32, "q4_0")))
    assert rounded.weight.formats() == {"Q": "q2_0", "L": "q4_0", "R": "q4_0"}
    assert exact.error <= rounded.error < (none.error + exact.error) / 2


def test_more_rounds_are_never_worse_on_held_out_tokens():
    errors = [decomposed("q2_0", 16, iterations=n).error for n in (1, 3)]
    assert errors[1] <= errors[0]


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
    if rank == 0:
        assert found.method == "plain"
        assert found.damping is None
        assert found.error == found.error_plain


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
    form = plugins.find("formats", "q4_0")
    source = form.quantize(weight())
    H = hessian(moments(128, 0), moments(128, 1))
    options = {"rank": 8, "factors": "q8_0", "damping": DAMPING, "iterations": 1}
    found = caldera(source.dequantize(), H, form, source=source, **options)
    assert found.error == 0.0
