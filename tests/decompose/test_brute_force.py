"""Error feedback and coordinate descent against every choice of codes there is, on weights so small
that all can be tried."""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.linalg import damp
from edgepack.core.weights import Grid
from edgepack.decompose import ldlq as module
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.formats._scalar import OneScale

ROWS, COLUMNS, BLOCK = 2, 4, 64
CODES = 4  # q2_0 has so many
SEEDS = range(30)


@pytest.fixture(autouse=True)
def unit_scale(monkeypatch: pytest.MonkeyPatch) -> OneScale:
    """q2_0 that always proposes the scale 1, so that codes are all there is to choose."""
    fmt = plugins.find("formats", "q2_0")

    def propose(x: Tensor, importance: Tensor) -> Grid:
        return {"d": torch.ones(len(x), 1, dtype=torch.float16)}

    monkeypatch.setattr(fmt, "candidates", propose, raising=False)
    return fmt


def correlated(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return X.T @ X / len(X)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, H and H_out of a block in which all columns but four are 0 and independent of the rest."""
    W = torch.zeros(ROWS, BLOCK)
    W[:, :COLUMNS] = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    H = torch.eye(BLOCK)
    H[:COLUMNS, :COLUMNS] = correlated(COLUMNS, seed + 100)
    return W, H, correlated(ROWS, seed + 200)


def cost(E: Tensor, H: Tensor, H_out: Tensor) -> Tensor:
    """tr(H_out E H Eᵀ) of many E ``[…, rows, columns]``."""
    return torch.einsum("ij,...jk,kl,...il->...", H_out, E, H, E)


@cache
def every_choice() -> Tensor:
    """All Q ``[n, rows, columns]``."""
    levels = plugins.find("formats", "q2_0").levels.double()
    return torch.cartesian_prod(*[levels] * (ROWS * COLUMNS)).view(-1, ROWS, COLUMNS)


def metrics(seed: int, *, output_side: bool) -> tuple[Tensor, Tensor]:
    """The damped H of the four columns, and H_out or the identity."""
    _, H, H_out = problem(seed)
    out = damp(H_out, module.OUT_DAMPING) if output_side else torch.eye(ROWS).double()
    return damp(H, 0.01)[:COLUMNS, :COLUMNS], out


@cache
def least(seed: int, *, output_side: bool) -> Tensor:
    """The cost of the best codes."""
    small = problem(seed)[0][:, :COLUMNS].double()
    return cost(small - every_choice(), *metrics(seed, output_side=output_side)).min()


def excess(seed: int, fmt: OneScale, passes: int, *, output_side: bool) -> float:
    """Cost of what is found over that of the best codes, as a share of the latter."""
    W, H, H_out = problem(seed)
    side = H_out if output_side else None
    Q = ldlq(W, metric(H, BLOCK, 0.01, side), fmt, passes).dequantize()
    assert torch.equal(Q[:, COLUMNS:], torch.zeros(ROWS, BLOCK - COLUMNS))
    E = (W - Q)[:, :COLUMNS].double()
    found = cost(E, *metrics(seed, output_side=output_side))
    best = least(seed, output_side=output_side)
    assert found >= best * (1 - 1e-6)
    return float(found / best - 1)


# output side or not → best codes found by the sweep alone and after the descent, of 30 problems,
# and the mean excess of their cost; as measured
NEAR = {False: (16, 22, 0.41, 0.19), True: (11, 14, 1.0, 0.34)}


@pytest.mark.slow
@pytest.mark.parametrize("output_side", NEAR)
def test_the_sweep_and_the_descent_are_near_the_best_codes(unit_scale, output_side):
    """Neither is exact (that is a closest-vector problem); what they reach here is theirs to
    keep, and may only get better."""
    swept, descended = (
        torch.tensor([excess(s, unit_scale, p, output_side=output_side) for s in SEEDS])
        for p in (0, 4)
    )
    best_swept, best_descended, mean_swept, mean_descended = NEAR[output_side]
    assert (swept < 1e-5).sum() >= best_swept
    assert (descended < 1e-5).sum() >= best_descended
    assert swept.mean() < mean_swept
    assert descended.mean() < mean_descended
    assert (descended <= swept + 1e-5).all()


@pytest.mark.parametrize("seed", range(8))
def test_no_single_code_can_be_changed_for_the_better(unit_scale, seed):
    W, H, H_out = problem(seed)
    Q = ldlq(W, metric(H, BLOCK, 0.01, H_out), unit_scale, passes=20).dequantize()
    whole, out = damp(H, 0.01), damp(H_out, module.OUT_DAMPING)
    found = cost((W - Q).double(), whole, out)
    for row, column, level in itertools.product(
        range(ROWS), range(COLUMNS), unit_scale.levels.tolist()
    ):
        changed = Q.clone()
        changed[row, column] = level
        assert cost((W - changed).double(), whole, out) >= found * (1 - 1e-6)


def test_without_correlation_the_codes_are_the_best(unit_scale):
    """Diagonal H and H_out: every element by itself."""
    W, _, _ = problem(0)
    H, H_out = torch.diag(torch.rand(BLOCK) + 0.5), torch.diag(torch.tensor([2.0, 0.5]))
    Q = ldlq(W, metric(H, BLOCK, 0.01, H_out), unit_scale, passes=0).dequantize()
    nearest = (W[..., None] - unit_scale.levels).abs().argmin(-1)
    assert torch.equal(Q, unit_scale.levels[nearest])
