"""The steps of recovery: Adam against torch's, and every rule of the loop on a problem whose
gradient is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgepack.recover import training
from edgepack.recover.adam import FIRST, SECOND, Moments, schedule, unit_step
from edgepack.recover.training import Recovered, Run, Settings

RATE = 0.01


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_it_moves_as_adam_of_torch_does(scale):
    """Twenty gradients of changing size; the first steps are where corrections count."""
    generator = torch.Generator().manual_seed(0)
    gradients = [
        scale * torch.randn(7, 5, generator=generator).double() * (1 + step % 3)
        for step in range(20)
    ]
    parameter = torch.zeros(7, 5).double().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=RATE, betas=(FIRST, SECOND), eps=1e-12)
    moments, ours = Moments.zero(parameter.detach()), torch.zeros(7, 5).double()
    for step, gradient in enumerate(gradients):
        parameter.grad = gradient.clone()
        adam.step()
        ours -= RATE * moments.update(gradient, step)
        torch.testing.assert_close(ours, parameter.detach(), rtol=1e-10, atol=1e-13)


def test_the_first_step_is_one_whatever_the_gradient():
    gradient = torch.tensor([1e-6, -3.0, 40.0]).double()
    direction = Moments.zero(gradient).update(gradient, 0)
    torch.testing.assert_close(direction, gradient.sign(), rtol=1e-5, atol=0)


def test_the_rate_is_a_straight_rise_and_half_a_cosine():
    rates = torch.tensor([schedule(step, 100) for step in range(100)])
    assert torch.allclose(rates[:5], torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    angles = torch.arange(95) / 95 * torch.pi
    assert torch.allclose(rates[5:], (1 + angles.cos()) / 2, atol=1e-6)


def test_sizes_are_along_the_shared_side():
    """The rows of R and the columns of L belong to one direction each."""
    R = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 6.0]])
    rms = torch.tensor([[(25 / 3) ** 0.5], [12**0.5]])
    torch.testing.assert_close(unit_step("R", R), rms)
    torch.testing.assert_close(unit_step("L", R.T), rms.T)
    assert unit_step("value", torch.tensor([3.0, 4.0])) == pytest.approx(12.5**0.5)


def test_a_scale_of_nothing_is_moved_by_half_of_what_its_row_has():
    d = torch.tensor([[4.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert unit_step("Q.d", d).tolist() == [[4.0, 0.75, 2.0, 0.75], [0.0, 0.0, 0.0, 0.0]]


# ---------------------------------------------------------------------------- the loop


PARTS = {"w": {"Q.d": torch.tensor([[2.0, 0.5, 1.0]]), "L": torch.tensor([[4.0], [3.0]])}}
NORM = {"norm": {"value": torch.tensor([1.0, 7.0])}}


class Slope:
    """A student whose gradient is the same everywhere (that of a plane)."""

    device = torch.device("cpu")

    def __init__(self, gradients: dict[tuple[str, str], Tensor]):
        self.masters = {
            n: {p: v.clone() for p, v in ps.items()} for n, ps in (PARTS | NORM).items()
        }
        self.slope = gradients

    def gradient(self, x: Tensor, target: Tensor, teacher: object):
        return 0.0, {key: value.clone() for key, value in self.slope.items()}


class NoData:
    """Any sequences will do."""

    train, batches = 4, ()
    targets = type("T", (), {"shape": (4, 16, 8)})

    def sequences(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows, rows


SLOPE = {
    ("w", "Q.d"): torch.tensor([[0.3, -0.2, 0.1]]),
    ("w", "L"): torch.tensor([[0.5], [-0.1]]),
    ("norm", "value"): torch.tensor([-2.0, 1.0]),
}
SETTINGS = Settings(50, tokens=16, scales=0.01, factors=0.02, norms=0.005, clip=1e9)


def make_run(tmp_path, settings: Settings = SETTINGS, start: float = 4.0) -> Run:
    run = Run(Slope(SLOPE), None, NoData(), settings, tmp_path / "state")
    run.report.held_out = [(0, start)]
    return run


def judged(run: Run, kl: float) -> None:
    """An evaluation that finds `kl`."""
    run.held_out_kl = lambda: kl
    run.evaluate()


def taken(run: Run, before: dict) -> dict[tuple[str, str], Tensor]:
    """How far each part has gone, in its own size, from `before`."""
    return {
        (n, p): (run.student.masters[n][p] - v) / unit_step(p, v)
        for n, ps in before.items()
        for p, v in ps.items()
    }


def test_the_first_step_goes_down_by_the_rate_of_each_part_as_a_share_of_it(tmp_path):
    """Adam's first step is the sign of the gradient; warm-up takes a half of the first rate."""
    run = make_run(tmp_path)
    run.step()
    warm = schedule(0, 50)
    rates = {"Q.d": 0.01, "L": 0.02, "value": 0.005}
    for (name, part), share in taken(run, PARTS | NORM).items():
        expected = -warm * rates[part] * SLOPE[name, part].sign()
        torch.testing.assert_close(share, expected, rtol=1e-4, atol=1e-9)
    assert run.report.steps == 1


def test_gradients_are_those_of_shares_and_clipped_together(tmp_path):
    run = make_run(tmp_path, replace(SETTINGS, clip=0.25))
    run.step()
    shares = {(n, p): SLOPE[n, p] * unit_step(p, (PARTS | NORM)[n][p]) for n, p in SLOPE}
    norm = sum(float(g.square().sum()) for g in shares.values()) ** 0.5
    assert norm > 0.25
    for (name, part), gradient in shares.items():
        first = run.first[name][part]
        torch.testing.assert_close(first, (1 - FIRST) * gradient * 0.25 / norm)


def test_short_gradients_are_not_made_longer(tmp_path):
    run = make_run(tmp_path, replace(SETTINGS, clip=1e9))
    run.step()
    first = run.first["norm"]["value"]
    gradient = SLOPE["norm", "value"] * unit_step("value", NORM["norm"]["value"])
    torch.testing.assert_close(first, (1 - FIRST) * gradient)


@pytest.mark.parametrize(("start", "share"), [(4.0, 1.0), (1.0, 1.0), (0.25, 0.5), (0.01, 0.1)])
def test_who_is_close_takes_smaller_steps(tmp_path, start, share):
    assert make_run(tmp_path, start=start).rate == pytest.approx(share * schedule(0, 50))


def test_a_setback_goes_back_to_the_best_and_on_a_third_as_fast(tmp_path):
    run = make_run(tmp_path)
    run.step()
    judged(run, 3.0)
    best = {n: {p: v.clone() for p, v in ps.items()} for n, ps in run.student.masters.items()}
    run.step()
    judged(run, 3.5)
    assert run.report.setbacks == [2]
    assert all(torch.equal(run.student.masters[n][p], best[n][p]) for n, p in SLOPE)
    assert all(not run.first[n][p].any() and not run.second[n][p].any() for n, p in SLOPE)
    run.step()
    rate = schedule(2, 50) / 3
    for (name, part), share in taken(run, best).items():
        expected = -rate * SETTINGS.rate(part) * SLOPE[name, part].sign()
        torch.testing.assert_close(share, expected, rtol=1e-3, atol=1e-9)


def test_patience_counts_setbacks_behind_the_best(tmp_path):
    run = make_run(tmp_path, replace(SETTINGS, patience=2))
    for kl, stopped in ((3.0, None), (3.2, None), (2.9, None), (3.0, None), (3.1, "patience")):
        run.step()
        judged(run, kl)
        assert run.report.stopped == stopped
    assert run.report.best_step == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run_unmoved(tmp_path, bad):
    run = make_run(tmp_path)
    run.student.slope = SLOPE | {("w", "L"): torch.tensor([[bad], [0.0]])}
    run.step()
    assert (run.report.stopped, run.report.steps) == ("diverged", 0)
    assert all(torch.equal(run.student.masters[n][p], (PARTS | NORM)[n][p]) for n, p in SLOPE)


def test_what_is_kept_is_what_the_next_steps_depend_on(tmp_path):
    """A run that is saved, made anew and read goes on as one that was not."""
    whole, halved = make_run(tmp_path), make_run(tmp_path)
    for _ in range(3):
        whole.step()
        halved.step()
    halved.save()
    again = Run(Slope(SLOPE), None, NoData(), SETTINGS, tmp_path / "state")
    again.resume()
    assert again.report == Recovered(3, None, [(0, 4.0)])
    for run in (whole, again):
        run.step()
    assert all(
        torch.equal(whole.student.masters[n][p], again.student.masters[n][p]) for n, p in SLOPE
    )


def test_batches_are_whole_sequences():
    assert training.order(4, 2, 0, 0).shape == (2,)
