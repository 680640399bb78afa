"""What is kept of a task vector: the right elements, as many as the density says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from edgepack.errors import RecipeError
from edgepack.merge import methods
from edgepack.merge.methods._order import cuts, value_at
from edgepack.merge.methods.base import Job

ELEMENTS = 100_000
"""More than three blocks."""


def values_with_ties(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "distinct":
        return torch.randn(ELEMENTS, generator=generator)
    if kind == "equal":
        return torch.full((ELEMENTS,), -0.25)
    few = torch.randint(-3, 4, (ELEMENTS,), generator=generator) / 4.0
    return few * torch.where(torch.rand(ELEMENTS, generator=generator) < 0.5, 1.0, -1.0)  # also −0


@pytest.mark.parametrize("kind", ["distinct", "few", "equal"])
@pytest.mark.parametrize("rank", [0, 1, 40_000, ELEMENTS // 2, ELEMENTS - 1, ELEMENTS])
def test_cuts_agree_with_a_stable_sort(kind, rank):
    values = values_with_ties(kind)
    order = torch.sort(values, stable=True).indices
    expected = torch.zeros(ELEMENTS, dtype=torch.bool)
    expected[order[rank:]] = True
    (cut,) = cuts(lambda block: values[block], ELEMENTS, (rank,))
    reached = [
        cut.reached(values[i : i + 7777], slice(i, min(i + 7777, ELEMENTS)))
        for i in range(0, ELEMENTS, 7777)
    ]
    assert torch.equal(torch.cat(reached), expected)
    if rank < ELEMENTS:
        assert value_at(lambda block: values[block], ELEMENTS, rank) == values[order[rank]]


def merge(
    method: str, delta: torch.Tensor, whole=None, seed=0, job_type=Job, **of_model
) -> torch.Tensor:
    """The task vector that a method makes of `delta` alone, on a base of zeros."""
    found = methods.get(method)
    values = found.complete({"weight": 1, **of_model}, of_model=True)
    parameters = found.complete(
        {"normalize": False, "rescale": False, **(whole or {})}, of_model=False
    )
    job = job_type("w", [delta], torch.zeros_like(delta), [values], parameters, seed)
    return found.merge(job)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.99])
def test_ties_keeps_the_largest(density):
    delta = values_with_ties("distinct")
    result = merge("ties", delta, density=density)
    kept = result != 0
    assert kept.sum() == int(density * ELEMENTS)
    assert delta.abs()[kept].min() > delta.abs()[~kept].max()
    assert torch.equal(result[kept], delta[kept])


def test_ties_keeps_one_element_at_least():
    result = merge("ties", torch.tensor([0.1, -0.3, 0.2]), density=0.01)
    assert result.tolist() == pytest.approx([0, -0.3, 0])


def test_breadcrumbs_leaves_out_both_ends():
    delta = values_with_ties("distinct")
    kept = merge("breadcrumbs", delta, density=0.6, gamma=0.1) != 0
    assert kept.sum() == 60_000
    ranks = delta.abs().argsort().argsort()[kept]
    assert (ranks.min(), ranks.max()) == (30_000, 89_999)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_stated_share(method, density):
    kept = merge(method, torch.ones(ELEMENTS), density=density) != 0
    deviation = math.sqrt(ELEMENTS * density * (1 - density))
    assert abs(int(kept.sum()) - ELEMENTS * density) < 4 * deviation
    neighbours = (kept[1:] & kept[:-1]).float().mean()  # independent of each other
    assert neighbours == pytest.approx(density**2, abs=4 * density / math.sqrt(ELEMENTS))


def test_random_masks_depend_on_seed_name_and_model_alone():
    job = Job("a", [torch.zeros(ELEMENTS)] * 2, seed=1)
    whole = job.random(0, slice(0, 600_000))
    assert torch.equal(job.random(0, slice(123_457, 400_001)), whole[123_457:400_001])
    others = [
        Job("b", [], seed=1).random(0, slice(0, 99)),
        Job("a", [], seed=2).random(0, slice(0, 99)),
    ]
    for other in [*others, job.random(1, slice(0, 99))]:
        assert not torch.equal(other, whole[:99])
    assert whole.min() >= 0
    assert whole.max() < 1
    assert whole.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 600_000))


@dataclass(frozen=True)
class Fixed(Job):
    """Draws numbers that are given."""

    drawn: torch.Tensor | None = None

    def random(self, model: int, block: slice) -> torch.Tensor:
        return self.drawn.flatten()[block]


@pytest.mark.parametrize("shape", [(40, 9), (7,), (3, 5, 4)], ids=str)
def test_della_keeps_by_rank_in_the_row(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ranks = delta.abs().argsort(dim=-1).argsort(dim=-1)
    chance = 0.4 - 0.2 + ranks / (shape[-1] - 1) * 2 * 0.2

    def kept(drawn: torch.Tensor) -> torch.Tensor:
        def job(*fields):
            return Fixed(*fields, drawn=drawn)

        return merge("della_linear", delta, job_type=job, density=0.4, epsilon=0.2) != 0

    assert kept(chance - 1e-6).all()
    assert not kept(chance + 1e-6).any()


def test_della_keeps_the_stated_share():
    delta = torch.randn(400, 250, generator=torch.Generator().manual_seed(0))
    kept = merge("della", delta, density=0.3, epsilon=0.1) != 0
    assert kept.float().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / delta.numel()))
    large = delta.abs() > delta.abs().median()
    assert kept[large].float().mean() == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "breadcrumbs"])
def test_rescale_keeps_the_l1_norm(method):
    delta = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    result = merge(method, delta, {"rescale": True}, density=0.3)
    assert (result == 0).sum() > 200_000
    assert result.abs().sum() == pytest.approx(float(delta.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("method", ["dare_linear", "della", "breadcrumbs"])
def test_density_0_keeps_nothing(method):
    assert not merge(method, torch.ones(50), {"rescale": True}, density=0).any()


def test_epsilon_that_leaves_the_range_is_refused():
    with pytest.raises(RecipeError, match=r"w: density 0.9 ± epsilon 0.15 is not between 0 and 1"):
        merge("della", torch.ones(5), density=0.9, epsilon=0.15)


def test_weights_that_cancel_out_are_refused():
    linear = methods.get("linear")
    weights = [linear.complete({"weight": w}, of_model=True) for w in (1, -1)]
    whole = linear.complete({}, of_model=False)
    with pytest.raises(RecipeError, match="parameters: the weights sum to 0"):
        linear.check_values(weights, whole)
    linear.check_values(weights, linear.complete({"normalize": "false"}, of_model=False))
