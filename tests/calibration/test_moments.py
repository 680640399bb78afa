"""What calibration keeps of a weight, against the sums written out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgepack.calibration import gram
from edgepack.calibration import moments as moments_module
from edgepack.calibration.gram import PANEL, Gram, gram_bytes
from edgepack.calibration.items import Files, Item, Options, Total
from edgepack.calibration.moments import (
    EMBEDDING,
    HEAD,
    OUT,
    Moments,
    load_hessian,
    trace,
    weight_hessian,
)
from edgepack.calibration.work import add_up, write_moments
from edgepack.core.weights import Hessian, WeightSpec, quadratic_cost
from edgepack.errors import CalibrationError
from edgepack.model.stream import Run
from tests.support.hessians import packed, save_hessian

ROWS, COLUMNS = 20, 8
SPECS = {
    role: WeightSpec(role, (ROWS, COLUMNS), "F32", role, None) for role in (EMBEDDING, "output")
}


def second_moment(n: int, seed: int) -> Tensor:
    X = torch.randn(40, n, generator=torch.Generator().manual_seed(seed))
    H = X.T @ X / 40
    return (H + H.T) / 2


def rows(seed: int) -> Tensor:
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) + 0.1
    return weights / weights.mean()


def calibrated(folder: Path, *, proportional: bool = False) -> tuple[Hessian, Hessian]:
    """The folder of a calibration with a head and embeddings of their own; what is in it."""
    sides = second_moment(COLUMNS, 0), second_moment(COLUMNS, 1)
    head = Hessian(*sides, torch.rand(COLUMNS), rows(2), rows(2))
    size = 3.0
    train, held_out = second_moment(COLUMNS, 3), second_moment(COLUMNS, 4)
    if proportional:
        train, held_out = size * head.train, size * head.held_out
    own = Hessian(train, held_out, torch.rand(COLUMNS), rows(5), rows(5))
    save_hessian(folder / HEAD, HEAD, head)
    save_hessian(folder / EMBEDDING, EMBEDDING, own)
    return head, own


def test_the_cost_of_a_tied_matrix_is_the_sum_of_its_two_places(tmp_path):
    """Exactly so where both metrics of the columns have one shape: then share and rows are such
    that tr(D E H Eᵀ) of the sum is that of the head plus that of the embeddings."""
    head, own = calibrated(tmp_path, proportional=True)
    tied = weight_hessian(tmp_path, SPECS[EMBEDDING], tied=True)
    E = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(6))
    for part, side in (("train", "out_train"), ("held_out", "out_held_out")):
        found = quadratic_cost(E, getattr(tied, part), getattr(tied, side))
        apart = [quadratic_cost(E, getattr(H, part), getattr(H, side)) for H in (head, own)]
        assert found == pytest.approx(sum(apart), rel=1e-5)
    assert torch.equal(tied.imatrix, head.imatrix)


def test_of_unlike_metrics_the_columns_add_up_and_the_rows_by_their_traces(tmp_path):
    head, own = calibrated(tmp_path)
    tied = weight_hessian(tmp_path, SPECS[EMBEDDING], tied=True)
    torch.testing.assert_close(tied.train, head.train + own.train)
    torch.testing.assert_close(tied.held_out, head.held_out + own.held_out)
    sizes = torch.stack([head.train.trace(), own.train.trace()])
    expected = (sizes @ torch.stack([head.out_train, own.out_train])) / sizes.sum()
    torch.testing.assert_close(tied.out_train, expected)


def test_untied_matrices_have_their_own_metrics(tmp_path):
    head, own = calibrated(tmp_path)
    found = {role: weight_hessian(tmp_path, spec, tied=False) for role, spec in SPECS.items()}
    for role, expected in ((EMBEDDING, own), ("output", head)):
        torch.testing.assert_close(found[role].train, expected.train)
        torch.testing.assert_close(found[role].out_train, expected.out_train)


def test_embeddings_that_were_not_calibrated_are_the_heads_or_all_alike(tmp_path):
    """Objective `guided`."""
    head, _ = calibrated(tmp_path)
    (tmp_path / EMBEDDING).unlink()
    tied = weight_hessian(tmp_path, SPECS[EMBEDDING], tied=True)
    torch.testing.assert_close(tied.train, head.train)
    untied = weight_hessian(tmp_path, SPECS[EMBEDDING], tied=False)
    assert torch.equal(untied.train, torch.eye(COLUMNS))
    assert untied.out_train is None


def tokens(count: int, seed: int, n: int = COLUMNS) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed))


def test_means_are_over_the_tokens_of_each_part_and_weights_count_once():
    """Several batches, of unequal size, training and held-out tokens apart."""
    batches = [(5, False), (11, False), (3, True)]
    moments = Moments()
    seen: dict[bool, list[tuple[Tensor, Tensor, Tensor]]] = {False: [], True: []}
    for seed, (count, held_out) in enumerate(batches):
        x, g, w = tokens(count, seed), tokens(count, seed + 10, 6), torch.rand(count) + 0.5
        moments.add("up", x, w, held_out)
        moments.add("up" + OUT, g, w.flip(0), held_out)
        moments.count(count, held_out)
        seen[held_out].append((x, g, w))
    found = moments.hessians()["up"]
    sides = {}
    for held_out, parts in seen.items():
        x, g = (torch.cat([part[i] for part in parts]).double() for i in (0, 1))
        w = torch.cat([part[2] for part in parts]).double()
        back = torch.cat([part[2].flip(0) for part in parts]).double()
        H = (x * w[:, None]).T @ x / len(x)
        torch.testing.assert_close(
            found.held_out if held_out else found.train, H, rtol=1e-5, atol=1e-6
        )
        side = (g * back[:, None]).T @ g
        sides[held_out] = side / side.diagonal().mean()
    torch.testing.assert_close(found.out_train, sides[False], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.out_held_out, sides[True], rtol=1e-5, atol=1e-6)
    train = torch.cat([part[0] for part in seen[False]]).double()
    torch.testing.assert_close(found.imatrix, train.square().mean(0), rtol=1e-5, atol=1e-7)


def wide_moments(n: int) -> Moments:
    """Sums of several panels, on both sides."""
    moments = Moments()
    for held_out in (False, True):
        for name, width in (("up", n), ("up" + OUT, 6), ("down", 5)):
            seed = n + 7 * held_out + width
            weight = torch.rand(40, generator=torch.Generator().manual_seed(seed))
            moments.add(name, tokens(40, seed, width), weight, held_out)
        moments.count(40, held_out)
    return moments


@pytest.mark.parametrize("n", [3, PANEL - 1, PANEL, 2 * PANEL + 40])
def test_what_is_kept_comes_back(tmp_path, n):
    moments = wide_moments(n)
    for name, expected in moments.hessians().items():
        moments.save(tmp_path / name, name)
        found = load_hessian(tmp_path, name)
        for part, value in vars(expected).items():
            assert (getattr(found, part) is None) == (value is None)
            assert value is None or torch.equal(getattr(found, part), value.float())
        assert trace(tmp_path, name) == pytest.approx(float(found.train.double().trace()))


def test_the_file_is_what_others_write_of_it(tmp_path):
    """safetensors reads it, and each triangle is row after row."""
    moments = wide_moments(PANEL + 40)
    moments.save(tmp_path / "up", "up")
    H = moments.hessians()["up"]
    found = load_file(tmp_path / "up")
    assert torch.equal(found.pop("up.train"), packed(H.train))
    save_hessian(tmp_path / "other", "up", H)
    other = load_file(tmp_path / "other")
    assert all(torch.equal(values, other[name]) for name, values in found.items())


def test_a_sum_of_panels_is_the_sum():
    n = 2 * PANEL + 40
    x, w = tokens(60, 0, n), torch.rand(60)
    found = Gram.zero(n)
    for k in range(len(found.panels)):
        found.add(k, x, w)
    wanted = (x.double() * w[:, None]).T @ x.double()
    torch.testing.assert_close(found.dense(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.dense(), found.dense().T)
    assert torch.equal(found.diagonal(), found.dense().diagonal())
    assert sum(panel.nbytes for panel in found.panels) == gram_bytes(n) < 0.75 * 8 * n * n


def test_an_output_side_without_gradients_counts_all_alike(tmp_path):
    moments = wide_moments(8)
    for held_out in (False, True):
        moments.sums["up" + OUT, held_out] = Gram.zero(6)
    moments.save(tmp_path / "up", "up")
    assert torch.equal(load_hessian(tmp_path, "up").out_train, torch.eye(6))


def test_no_held_out_tokens_are_an_error():
    moments = Moments()
    moments.add("up", tokens(4, 0), None, held_out=False)
    moments.count(4, held_out=False)
    with pytest.raises(CalibrationError, match="up: there are no held-out tokens"):
        moments.hessians()


def test_moments_that_go_through_files_are_those_in_memory(tmp_path, monkeypatch):
    """More than ten panels, whose names do not sort as their numbers do."""
    for module in (gram, moments_module):
        monkeypatch.setattr(module, "PANEL", 4)
    files = Files(tmp_path, (50, 50), 8)
    runs = [Run(number, 0, (slice(0, 1),), number == 2) for number in range(3)]
    whole = Moments()
    for run in runs:
        found = Moments()
        for name, width in (("up", 50), ("up" + OUT, 6)):
            found.add(name, tokens(40, run.number, width), torch.rand(40), run.held_out)
        found.count(40, run.held_out)
        item = Item("backward", None, files, Options(0), run, 7, (("up",),))
        write_moments(found, ("up",), item)
        whole.merge(found)
    (tmp_path / "7").mkdir()
    add_up(Total(files, tuple(runs), 7, ("up",), tmp_path / "7"))
    whole.save(tmp_path / "up", "up")
    assert (tmp_path / "7" / "up").read_bytes() == (tmp_path / "up").read_bytes()
