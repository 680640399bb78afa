"""What calibration keeps of a weight, against the sums written out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgepack.calibration.moments import (
    EMBEDDING,
    HEAD,
    OUT,
    Moments,
    load_hessian,
    save_hessians,
    weight_hessian,
)
from edgepack.core.weights import Hessian, WeightSpec, quadratic_cost

ROWS, COLUMNS = 20, 8
SPECS = {
    role: WeightSpec(role, (ROWS, COLUMNS), "F32", role, None) for role in (EMBEDDING, "output")
}


def gram(n: int, seed: int) -> Tensor:
    X = torch.randn(40, n, generator=torch.Generator().manual_seed(seed))
    H = X.T @ X / 40
    return (H + H.T) / 2


def rows(seed: int) -> Tensor:
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) + 0.1
    return weights / weights.mean()


def calibrated(folder: Path, *, proportional: bool = False) -> tuple[Hessian, Hessian]:
    """The folder of a calibration with a head and embeddings of their own; what is in it."""
    head = Hessian(gram(COLUMNS, 0), gram(COLUMNS, 1), torch.rand(COLUMNS), rows(2), rows(2))
    size = 3.0
    train, held_out = gram(COLUMNS, 3), gram(COLUMNS, 4)
    if proportional:
        train, held_out = size * head.train, size * head.held_out
    own = Hessian(train, held_out, torch.rand(COLUMNS), rows(5), rows(5))
    save_hessians(folder / HEAD, {HEAD: head})
    save_hessians(folder / EMBEDDING, {EMBEDDING: own})
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
    moments = Moments(output_side=True)
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


def test_what_is_kept_comes_back(tmp_path):
    full = replace(
        Hessian(gram(COLUMNS, 0), gram(COLUMNS, 1), torch.rand(COLUMNS)),
        out_train=gram(6, 2),
        out_held_out=gram(6, 3),
    )
    plain = Hessian(gram(5, 4), gram(5, 5), torch.rand(5))
    save_hessians(tmp_path / "0", {"up": full, "down": plain})
    for name, expected in (("up", full), ("down", plain)):
        found = load_hessian(tmp_path / "0", name)
        for part, value in vars(expected).items():
            assert (getattr(found, part) is None) == (value is None)
            assert value is None or torch.equal(getattr(found, part), value)
