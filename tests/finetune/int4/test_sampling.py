"""Bit splitting and leverage scores: exact codes, exact budgets, unbiased sums, less variance."""

import pytest
import torch

from edgepack.finetune.int4 import sampling

DRAWS = 2000
N, OUT, IN = 16, 8, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy_tailed(n: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows whose lengths differ by orders of magnitude, as those of gradients do."""
    g = torch.randn(n, columns, generator=generator(seed))
    return g * torch.logspace(0, -2, n)[:, None]


def operands():
    return heavy_tailed(N, OUT), *(torch.randn(m, IN, generator=generator(1)) for m in (N, OUT))


@pytest.mark.parametrize("seed", range(5))
def test_every_integer_up_to_112_has_one_pair_of_halves(seed):
    """A gradient whose values are these integers is split without rounding, the largest too: the
    published code clips at 90/98."""
    g = torch.arange(-112.0, 113.0)[torch.randperm(225, generator=generator(seed))].reshape(15, 15)
    halves = sampling.split_bits(0.25 * g, generator(seed))
    assert halves.codes.dtype == torch.int8
    assert halves.codes.min() == -7
    assert halves.codes.max() == 7
    assert halves.codes.shape == (30, 15)
    assert torch.equal(halves.values(), 0.25 * g)


def test_the_error_is_below_one_step_of_the_lower_half():
    g = heavy_tailed(40, 30)
    halves = sampling.split_bits(g, generator())
    assert (halves.values() - g).abs().max() < halves.step[0] * 1.001
    torch.testing.assert_close(halves.step, g.abs().max().expand(40) / 112)
    lengths = torch.cat(
        [15 * halves.step[0] * halves.codes[:40], halves.step[0] * halves.codes[40:]]
    )
    torch.testing.assert_close(halves.norms(), lengths.norm(dim=1))


def test_rows_with_steps_of_their_own_are_each_as_exact():
    g = heavy_tailed(40, 30)
    errors = (sampling.split_bits(g, generator(), by_row=True).values() - g).norm(dim=1)
    assert (errors < 0.02 * g.norm(dim=1)).all()
    errors = (sampling.split_bits(g, generator()).values() - g).norm(dim=1)
    assert (errors > 0.1 * g.norm(dim=1)).any()


@pytest.mark.parametrize("by_row", [False, True])
def test_bit_splitting_is_unbiased(by_row):
    g = heavy_tailed(6, 5)
    random = generator(2)
    halves = (sampling.split_bits(g, random, by_row=by_row) for _ in range(DRAWS))
    assert_mean(torch.stack([h.values() for h in halves]), g)


def paper_probabilities(scores: list[float], budget: int) -> list[float]:
    """The paper's loop: spread the budget in proportion, clamp, spread what is left again."""
    certain: set[int] = set()
    while True:
        rest = sum(c for i, c in enumerate(scores) if i not in certain)
        p = [
            1.0 if i in certain else (budget - len(certain)) * c / rest if rest else 0.0
            for i, c in enumerate(scores)
        ]
        above = {i for i, value in enumerate(p) if value > 1}
        if not above:
            return p
        certain |= above


@pytest.mark.parametrize("power", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_those_of_the_papers_loop(power, seed):
    scores = torch.rand(40, generator=generator(seed), dtype=torch.float64) ** power
    p = sampling.keep_probabilities(scores, 20)
    expected = torch.tensor(paper_probabilities(scores.tolist(), 20), dtype=torch.float64)
    torch.testing.assert_close(p, expected)
    assert float(p.sum()) == pytest.approx(20)
    assert power < 8 or (p == 1).any()


def test_rows_of_zeros_are_never_kept_and_few_others_always():
    p = sampling.keep_probabilities(torch.tensor([0.0, 3.0, 0.0, 1e-9, 0.0, 0.0]), 3)
    assert p.tolist() == [0, 1, 0, 1, 0, 0]
    assert sampling.keep_probabilities(torch.zeros(4), 2).tolist() == [0, 0, 0, 0]


def test_scores_are_lengths_of_rows():
    """Of g for the activation gradient, of g times x for the weight gradient."""
    g, x, _ = operands()
    x *= torch.logspace(-1, 1, N)[:, None]
    halves = sampling.split_bits(g, generator())
    upper, lower = halves.codes.float().split(N)
    lengths = torch.cat([15 * upper.norm(dim=1), lower.norm(dim=1)]) * halves.step[0]
    for p, scores in (
        (sampling.activation_probabilities(halves), lengths),
        (sampling.weight_probabilities(halves, x), lengths * x.norm(dim=1).repeat(2)),
    ):
        torch.testing.assert_close(p, torch.tensor(paper_probabilities(scores.tolist(), N)))


def test_half_of_the_rows_are_expected():
    g, x, _ = operands()
    halves = sampling.split_bits(g, generator())
    for p in (sampling.activation_probabilities(halves), sampling.weight_probabilities(halves, x)):
        assert len(p) == 2 * N
        assert float(p.sum()) == pytest.approx(N, rel=1e-6)
        random = generator(5)
        kept = [len(sampling._draw(halves, p, random)[0]) for _ in range(500)]
        assert sum(kept) / len(kept) == pytest.approx(N, rel=0.03)


def weight_draws(p_of, count=DRAWS) -> torch.Tensor:
    g, x, _ = operands()
    random = generator(3)
    draws = []
    for _ in range(count):
        halves = sampling.split_bits(g, random)
        draws.append(sampling.weight_gradient(halves, x, p_of(halves, x), random))
    return torch.stack(draws)


def activation_draws(p_of, count=DRAWS) -> torch.Tensor:
    g, _, W = operands()
    random = generator(4)
    draws = []
    for _ in range(count):
        halves = sampling.split_bits(g, random)
        draws.append(sampling.activation_gradient(halves, W, p_of(halves), random))
    return torch.stack(draws)


def assert_mean(draws: torch.Tensor, exact: torch.Tensor) -> None:
    """The mean is within 3σ: 99 % of its entries (of normal numbers 99.7 % are), and its component
    along the exact product, which a factor left out would change most."""
    sigma = draws.std(0) / len(draws) ** 0.5
    assert (sigma > 0).any()
    within = (draws.mean(0) - exact).abs() <= 3 * sigma + 1e-6 * exact.abs().max()
    assert within.float().mean() >= 0.99
    along = (draws * exact).flatten(1).sum(1)
    off = float(along.mean() - exact.square().sum())
    assert abs(off) <= 3 * float(along.std()) / len(draws) ** 0.5


def test_the_weight_gradient_is_unbiased():
    g, x, _ = operands()
    assert_mean(weight_draws(sampling.weight_probabilities), g.T @ x)


def test_the_activation_gradient_is_unbiased():
    g, _, W = operands()
    assert_mean(activation_draws(sampling.activation_probabilities), g @ W)


def test_leverage_scores_have_less_variance_than_uniform_sampling():
    """The same expected number of rows. Gradients fall by two orders of magnitude, so the margin is
    large."""
    half = torch.full((2 * N,), 0.5)
    for ours, uniform in (
        (weight_draws(sampling.weight_probabilities, 400), weight_draws(lambda *_: half, 400)),
        (
            activation_draws(sampling.activation_probabilities, 400),
            activation_draws(lambda _: half, 400),
        ),
    ):
        assert ours.var(0).sum() < uniform.var(0).sum() / 2


def test_the_variance_is_the_formula():
    """Σ c² (1 − p)/p of fixed halves."""
    g, x, _ = operands()
    halves = sampling.split_bits(g, generator())
    p = sampling.weight_probabilities(halves, x)
    random = generator(6)
    draws = torch.stack(
        [sampling.weight_gradient(halves, x, p, random) for _ in range(DRAWS)]
    ).double()
    c = halves.norms() * x.norm(dim=1).repeat(2)
    drawn = p > 0
    expected = (c.square() * (1 - p) / p)[drawn].sum()
    assert float(draws.var(0).sum()) == pytest.approx(float(expected), rel=0.1)


def test_without_probabilities_both_products_are_exact():
    g, x, W = operands()
    halves = sampling.split_bits(g, generator())
    exact = halves.values()
    close = torch.testing.assert_close
    close(sampling.weight_gradient(halves, x, None, generator()), exact.T @ x)
    close(sampling.activation_gradient(halves, W, None, generator()), exact @ W)


def test_a_gradient_of_zeros_stays_zero_and_nan_stays_visible():
    _, x, W = operands()
    for g, check in (
        (torch.zeros(N, OUT), lambda y: (y == 0).all()),
        (
            torch.zeros(N, OUT).index_fill(0, torch.tensor([2]), torch.nan),
            lambda y: y.isnan().any(),
        ),
    ):
        halves = sampling.split_bits(g, generator())
        p = sampling.activation_probabilities(halves)
        assert check(sampling.activation_gradient(halves, W, p, generator()))
        p = sampling.weight_probabilities(halves, x)
        assert check(sampling.weight_gradient(halves, x, p, generator()))


def test_generators_follow_from_all_numbers():
    """torch keeps 32 bits of a seed: a seed in the upper half would be lost."""
    numbers = [(0, 0), (0, 1), (1, 0), (2**32, 0), (1, 1)]
    first = [float(torch.rand((), generator=sampling.make_generator("cpu", *n))) for n in numbers]
    again = [float(torch.rand((), generator=sampling.make_generator("cpu", *n))) for n in numbers]
    assert first == again
    assert len(set(first)) == len(numbers)
