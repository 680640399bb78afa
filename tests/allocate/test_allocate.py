"""Choosing formats and ranks for a size: the knapsack, and a recipe with `target_size`."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import edgepack
from edgepack.allocate import costs as candidates
from edgepack.allocate.costs import Search, _Trial
from edgepack.allocate.knapsack import Option, allocate, hull
from edgepack.allocate.stage import Allocate
from edgepack.cli import app
from edgepack.core import plugins
from edgepack.core.weights import FactoredWeight, Hessian, quadratic_cost
from edgepack.decompose.caldera import caldera, next_round
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.decompose.low_rank import low_rank
from edgepack.errors import RecipeError
from edgepack.formats.base import Format
from edgepack.pipeline import make_plan
from edgepack.recipe.read import parse
from tests.support.tiny import make_model


def problem(seed: int, weights: int = 5) -> dict[str, list[Option]]:
    chance = random.Random(seed)
    return {
        f"w{i}": [Option(f"f{j}", 0, chance.randint(1, 40), chance.random() ** 3) for j in range(4)]
        for i in range(weights)
    }


def best(options: dict[str, list[Option]], budget: int) -> float:
    fitting = (
        combination
        for combination in itertools.product(*options.values())
        if sum(o.nbytes for o in combination) <= budget
    )
    return min(sum(o.cost for o in combination) for combination in fitting)


def convex(seed: int, weights: int = 5) -> dict[str, list[Option]]:
    """Options whose steps are all of one size and each worth less than the one before: there the
    greedy choice is the best."""
    chance = random.Random(seed)
    found = {}
    for i in range(weights):
        gains = sorted((chance.random() for _ in range(4)), reverse=True)
        costs = [sum(gains[j:]) for j in range(5)]
        start = chance.randint(1, 9)
        found[f"w{i}"] = [Option(f"f{j}", 0, start + 3 * j, cost) for j, cost in enumerate(costs)]
    return found


def total(chosen: dict[str, Option]) -> tuple[int, float]:
    return sum(o.nbytes for o in chosen.values()), sum(o.cost for o in chosen.values())


def budgets(options: dict[str, list[Option]]) -> range:
    """Every budget from the smallest choice to the largest."""
    return range(
        sum(min(o.nbytes for o in found) for found in options.values()),
        sum(max(o.nbytes for o in found) for found in options.values()) + 1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_optimum_where_steps_are_alike_and_convex(seed: int):
    options = convex(seed)
    for budget in budgets(options):
        nbytes, cost = total(allocate(options, budget))
        assert nbytes <= budget
        assert cost == pytest.approx(best(options, budget))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_any_options_are_near_the_optimum_never_over_the_budget_and_nothing_more_fits(seed: int):
    """Brute force over 1024 choices. The relaxed problem bounds the loss by the one step of a hull
    that does not fit; what is measured here is half of that at the most."""
    options = problem(seed)
    every = list(budgets(options))
    for budget in [*every[:: max(1, len(every) // 12)], every[-1]]:
        chosen = allocate(options, budget)
        nbytes, cost = total(chosen)
        assert nbytes <= budget
        assert all(chosen[name] in found for name, found in options.items())
        for name, found in options.items():
            for other in found:
                fits = other.nbytes - chosen[name].nbytes <= budget - nbytes
                assert not (fits and other.cost < chosen[name].cost)
        step = max(
            a.cost - b.cost
            for found in options.values()
            for a, b in itertools.pairwise(hull(found))
        )
        assert best(options, budget) - 1e-12 <= cost <= best(options, budget) + 0.5 * step
    assert cost == pytest.approx(best(options, every[-1]))


def formats(options: dict[str, list[Option]], budget: int) -> dict[str, str]:
    return {name: option.format for name, option in allocate(options, budget).items()}


def test_what_is_left_buys_the_largest_improvement_that_fits_until_nothing_does():
    """The middle options lie above their hulls, so that only left-over bytes buy them."""
    options = {
        "a": [Option("s", 0, 10, 1.0), Option("m", 0, 16, 0.95), Option("l", 0, 100, 0.0)],
        "b": [Option("s", 0, 10, 1.0), Option("m", 0, 15, 0.97), Option("l", 0, 100, 0.0)],
    }
    assert all(len(hull(found)) == 2 for found in options.values())
    assert formats(options, 30) == {"a": "m", "b": "s"}  # 10 to spend
    assert formats(options, 31) == {"a": "m", "b": "m"}  # 11


def test_a_step_that_does_not_fit_does_not_end_the_steps():
    """They go on by gain per byte; left to the largest improvement, `c` would take it all."""
    options = {
        "dear": [Option("s", 0, 10, 5.0), Option("l", 0, 110, 0.0)],  # 0.05 a byte, never fits
        "a": [Option("s", 0, 10, 0.2), Option("l", 0, 20, 0.0)],  # 0.02
        "b": [Option("s", 0, 10, 0.21), Option("l", 0, 30, 0.0)],  # 0.0105
        "c": [Option("s", 0, 10, 0.3), Option("l", 0, 40, 0.0)],  # 0.01
    }
    assert formats(options, 70) == {"dear": "s", "a": "l", "b": "l", "c": "s"}
    assert formats(options, 140) == {"dear": "l", "a": "s", "b": "s", "c": "s"}


def test_many_small_weights_leave_next_to_nothing():
    options = problem(1, weights=300)
    chosen = allocate(options, 5000)
    assert 4990 <= sum(o.nbytes for o in chosen.values()) <= 5000


def test_the_hull_is_convex_and_falls():
    for seed in range(20):
        points = hull(problem(seed, weights=1)["w0"])
        gains = [(a.cost - b.cost) / (b.nbytes - a.nbytes) for a, b in itertools.pairwise(points)]
        assert gains == sorted(gains, reverse=True)
        assert all(gain > 0 for gain in gains)


def test_a_budget_nothing_fits_is_an_error():
    with pytest.raises(ValueError, match="smallest"):
        allocate(problem(0), 0)


def hessian(rows: int, columns: int, *, diagonal: bool) -> Hessian:
    generator = torch.Generator().manual_seed(rows)

    def moments(n: int) -> Tensor:
        X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
        return X.T @ X / len(X)

    def side() -> Tensor:
        found = torch.rand(rows, generator=generator) + 0.1 if diagonal else moments(rows)
        return found / (found if diagonal else found.diagonal()).mean()

    sides = [side()] * 2 if diagonal else [side(), side()]
    return Hessian(moments(columns), moments(columns), torch.ones(columns), *sides)


def costs_of(trial: _Trial, fmt: Format) -> dict[int, float]:
    """Rank → KL of one format."""
    return trial.costs([fmt], with_ranks=True)[fmt.name]


Q8 = plugins.find("formats", "q8_0")
"""Too fine for ranks to be tried."""


@pytest.mark.parametrize("factors", ["f16", "q4_0"])
def test_the_cost_of_a_rank_is_that_of_one_round(factors: str):
    """L·R of W, Q for the rest, L·R for what Q leaves, in the factors' format."""
    W = torch.randn(48, 64, generator=torch.Generator().manual_seed(3))
    H, fmt = hessian(48, 64, diagonal=False), plugins.find("formats", "q2_0")
    found = costs_of(_Trial(W, H, Search({}, [32], factors, 0.1)), fmt)[32]
    first = low_rank(W, H.train, 32, factors, H.out_train)
    rest = W - FactoredWeight(*next_round(W, H, fmt, *first, factors, 0.1)).dense()
    expected = quadratic_cost(rest, H.held_out, H.out_held_out) / (2 * 48)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
def test_costs_are_those_of_the_weight_really_rounded(diagonal: bool):
    W, H = (
        torch.randn(48, 64, generator=torch.Generator().manual_seed(3)),
        hessian(48, 64, diagonal=diagonal),
    )
    fmt = plugins.find("formats", "q2_0")
    costs = costs_of(_Trial(W, H, Search({}, [0, 4, 16], "f16", 0.1)), fmt)
    assert set(costs) == {0, 4, 16}
    assert set(costs_of(_Trial(W, H, Search({}, [0, 4], "f16", 0.1)), Q8)) == {0}
    E = W - ldlq(W, metric(H.train, 64, 0.1, H.out_train), fmt).dequantize()
    assert costs[0] == pytest.approx(quadratic_cost(E, H.held_out, H.out_held_out) / 96, rel=1e-4)
    assert costs[0] > costs[4] > costs[16]
    options = {"rank": 16, "factors": "f16", "damping": [0.1], "iterations": 1}
    found = caldera(W, H, fmt, **options)
    rest = W - found.weight.dense()
    cost = quadratic_cost(rest, H.held_out, H.out_held_out) / 96
    assert cost <= costs[16] * 1.001  # caldera has the other order to choose from as well


def test_some_rows_of_a_vocabulary_stand_for_all(monkeypatch: pytest.MonkeyPatch):
    W, H = (
        torch.randn(960, 64, generator=torch.Generator().manual_seed(3)),
        hessian(960, 64, diagonal=True),
    )
    fmt = plugins.find("formats", "q4_0")
    search = Search({}, [0], "f16", 0.1)
    every = costs_of(_Trial(W, H, search), fmt)[0]
    monkeypatch.setattr(candidates, "ROWS", 240)
    assert costs_of(_Trial(W, H, search), fmt)[0] == pytest.approx(every, rel=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, layers=2)
    return folder


def recipe(model: Path, **compress: object) -> dict[str, object]:
    (model / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return {
        "model": str(model),
        "calibrate": {"source": str(model / "text.txt"), "tokens": 512, "sequence_length": 64},
        "compress": {"damping": [0.1], **compress},
        "export": {"measure": {"tokens": 0}},
    }


def files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.gguf"))


@pytest.mark.slow
def test_the_files_are_no_larger_than_asked_and_hardly_smaller(model: Path, tmp_path: Path):
    given = recipe(model, target_size="1GB", candidates=["q4_0", "q5_0", "q8_0"], ranks=[0, 4])
    small, large = (
        make_plan(
            parse(given | {"compress": given["compress"] | {"candidates": [f]}}), "gguf", model
        )
        for f in ("q4_0", "q8_0")
    )
    costs = []
    for share in (0.3, 0.6):
        low, high = (p.find(Allocate).allocation.size for p in (small, large))
        target = int(low + share * (high - low))
        given["compress"]["target_size"] = target
        path = tmp_path / f"{target}.yaml"
        path.write_text(json.dumps(given))
        artifact = edgepack.build(path, target="gguf", out=tmp_path / str(target))
        bought = artifact.manifest["allocation"]
        assert files(artifact.folder) == bought["size"] <= target
        assert bought["size"] > 0.93 * target  # few and tiny weights; a percent for real ones
        assert bought["expected_kl"] <= bought["expected_kl_rank_0"]
        assert f"Chosen for {target / 1e3:.1f} kB" in (artifact.folder / "report.md").read_text()
        costs.append(bought["expected_kl"])
        again = edgepack.plan(path, target="gguf")
        assert {s.name for s in again.stages if not s.is_done} == {"export"}  # not kept
    assert costs[0] > costs[1]


@pytest.mark.slow
def test_overrides_stand(model: Path):
    given = recipe(
        model,
        bits_per_weight=7,
        candidates=["q4_0", "q8_0"],
        overrides={"*.mlp.down_proj": {"format": "q5_0"}, "*.q_proj": {"rank": 4}},
    )
    for name, choice in make_plan(parse(given), "gguf", model).formats.items():
        if "down_proj" in name:
            assert choice.Q == "q5_0"
        if "q_proj" in name:
            assert choice.rank == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "words"),
    [
        ({"target_size": "1kB"}, ["less than the smallest"]),
        ({"target_size": "1MB", "format": "q4_0"}, ["target_size chooses format"]),
        ({"target_size": "1MB", "bits_per_weight": 3}, ["not both"]),
        ({"ranks": [8]}, ["ranks is for a target_size"]),
        ({"target_size": "1MB", "candidates": ["q9"]}, ["compress.candidates", "'q9'"]),
        ({"target_size": "1MB", "candidates": ["q4_k"]}, ["none fits"]),
        ({"target_size": "large"}, ["compress.target_size"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(model: Path, compress: dict, words: list[str]):
    with pytest.raises(RecipeError) as error:
        make_plan(parse(recipe(model, **compress)), "gguf", model)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_layer_errors_cannot_be_compared(model: Path):
    given = recipe(model, bits_per_weight=4)
    given["calibrate"]["objective"] = "layer"
    with pytest.raises(RecipeError, match="objective"):
        make_plan(parse(given), "gguf", model)


@pytest.mark.slow
def test_a_plan_before_measuring_says_that_it_guesses(model: Path, tmp_path: Path):
    given = recipe(model, bits_per_weight=4.7)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(given))
    shown = CliRunner().invoke(app, ["plan", str(path), "--target", "gguf"])
    assert shown.exit_code == 0
    assert "a guess from the bits" in " ".join(shown.output.split())
