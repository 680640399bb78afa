"""What a size buys: files never larger than asked for, and nothing left that would buy more."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from edgepack import formats
from edgepack.allocate.budget import search, spend
from edgepack.allocate.costs import Costs
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core.weights import WeightFormat
from edgepack.planning.formats import factor_bytes
from edgepack.planning.target import get
from edgepack.recipe.read import parse
from edgepack.recipe.sections import Recipe
from tests.support.tiny import make_model

RANKS = [0, 4, 8]
CANDIDATES = ["q2_0", "q4_0", "q8_0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, layers=2, hidden=64, intermediate=128, tied=False)
    return open_checkpoint(str(folder))


def recipe(**compress: object) -> Recipe:
    given = {"candidates": CANDIDATES, "ranks": RANKS, "factors": "f16"} | compress
    return parse({"model": "m", "compress": given})


def costs_of(checkpoint: Checkpoint) -> dict[str, Costs]:
    """Costs as they are measured: falling with bits, and where Q is coarse with the rank."""
    found = {}
    for index, (name, spec) in enumerate(checkpoint.specs.items()):
        if len(spec.shape) < 2:
            continue
        unit = 1 + index % 5
        found[name] = {
            form: {
                r: unit * 4.0 ** -formats.get(form).bits_per_weight * 60.0 ** (-r / 4)
                for r in ranks
            }
            for form, ranks in {"q2_0": RANKS, "q4_0": [0], "q8_0": [0]}.items()
        }
    return found


@pytest.fixture
def measured(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The folder of a finished allocate stage."""
    for name, costs in costs_of(checkpoint).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(costs))
    return tmp_path


def bought(checkpoint: Checkpoint, measured: Path | None, **compress: object):
    asked = recipe(**compress)
    assert asked.compress is not None
    target = get("gguf")
    files = partial(target.files_size, checkpoint)
    tried = search(checkpoint, asked.compress, target)
    return spend(checkpoint, asked.compress, tried, measured, files), files


def nbytes(checkpoint: Checkpoint, name: str, choice: WeightFormat) -> int:
    """Bytes of Q, L and R."""
    spec = checkpoint.specs[name]
    return formats.get(choice.Q).nbytes(spec.shape) + factor_bytes(spec, choice)


def choices_of(checkpoint: Checkpoint, name: str) -> list[WeightFormat]:
    """All that a matrix may become."""
    ranks = [4, 8] if checkpoint.specs[name].block is not None else []
    return [*map(WeightFormat, CANDIDATES), *(WeightFormat("q2_0", r, "f16", "f16") for r in ranks)]


@pytest.mark.slow
def test_files_are_never_larger_than_any_target_and_leave_no_improvement_unbought(
    checkpoint: Checkpoint, measured: Path
):
    costs = costs_of(checkpoint)

    def cost(name: str, choice: WeightFormat) -> float:
        return costs[name][choice.Q][choice.rank]

    ranked = 0
    for target in range(72_000, 190_000, 7_900):
        allocation, files = bought(checkpoint, measured, target_size=target)
        assert allocation.size == files(allocation.formats) <= target
        ranked += any(choice.rank for choice in allocation.formats.values())
        for name, choice in allocation.formats.items():
            for other in choices_of(checkpoint, name):
                if cost(name, other) < cost(name, choice):
                    more = nbytes(checkpoint, name, other) - nbytes(checkpoint, name, choice)
                    # two factors have headers of 150 bytes each, and files are padded
                    assert allocation.size + more > target - 400, (target, name, other)
    assert ranked > 3


def test_bits_per_weight_count_every_matrix_and_its_factors(checkpoint: Checkpoint, measured: Path):
    specs = {n: s for n, s in checkpoint.specs.items() if len(s.shape) == 2}
    elements = sum(spec.numel for spec in specs.values())
    smallest = 2.25
    for bits in (smallest, 2.6, 3.5, 5.0, 8.0):
        allocation, _ = bought(checkpoint, measured, bits_per_weight=bits)
        stored = sum(nbytes(checkpoint, n, choice) for n, choice in allocation.formats.items())
        assert allocation.size == stored <= int(elements * bits / 8)
        largest = max(formats.get("q8_0").nbytes(spec.shape) for spec in specs.values())
        assert stored > elements * bits / 8 - largest
    assert allocation.target == int(elements * 8.0 / 8)


def test_what_is_expected_is_the_sum_and_the_control_has_no_ranks(
    checkpoint: Checkpoint, measured: Path
):
    costs = costs_of(checkpoint)
    allocation, _ = bought(checkpoint, measured, bits_per_weight=3.0)
    chosen = {n: costs[n][c.Q][c.rank] for n, c in allocation.formats.items()}
    assert allocation.expected_kl == pytest.approx(sum(chosen.values()))
    plain, _ = bought(checkpoint, measured, bits_per_weight=3.0, ranks=[0])
    assert allocation.expected_kl_rank_0 == pytest.approx(plain.expected_kl)
    assert allocation.expected_kl < plain.expected_kl


def test_an_overrides_rank_stands_whatever_it_costs(checkpoint: Checkpoint, measured: Path):
    overrides = {"*.k_proj": {"rank": 4, "format": "q2_0"}}
    allocation, _ = bought(checkpoint, measured, bits_per_weight=8.0, overrides=overrides)
    ranks = {c.rank for n, c in allocation.formats.items() if "k_proj" in n}
    assert ranks == {4}


def test_without_measurements_bits_alone_are_the_guess(checkpoint: Checkpoint):
    allocation, _ = bought(checkpoint, None, bits_per_weight=5.0)
    assert allocation.expected_kl is None
    assert torch.tensor([c.rank for c in allocation.formats.values()]).sum() == 0
