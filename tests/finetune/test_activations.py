"""What is pushed comes back in reverse order, as exactly as its kind promises."""

from __future__ import annotations

import pytest
import torch

from edgepack.finetune.activations import BYTES, run_of, saved


@pytest.mark.parametrize(
    ("kind", "error"), [("memory", 0.0), ("disk", 0.0), ("bfloat16", 4e-3), ("int4", 0.2)]
)
@pytest.mark.parametrize("width", [576, 12, 7])
def test_the_last_comes_back_first(kind, error, width):
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 5, width, generator=draw) for _ in range(3)]
    stack = saved(kind)
    for x in states:
        stack.push(x)
    for x in reversed(states):
        found = stack.pop()
        assert found.shape == x.shape
        assert found.dtype == torch.float32
        assert float((found - x).norm() / x.norm()) <= error
    stack.close()


def test_a_hadamard_matrix_saves_the_others_from_an_outlier():
    """Rounded in a run with an outlier of 100, values of 1 would all become 0."""
    x = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    x[..., 3] = 100.0
    stack = saved("int4")
    stack.push(x)
    found = stack.pop()
    assert float((found - x)[..., 4:].abs().mean()) < float(x[..., 4:].abs().mean()) * 2.5
    assert found[..., 4:].abs().max() > 0


def test_the_bytes_in_plans_are_those_of_the_tensors():
    x = torch.randn(4, 32, 576)
    stack = saved("int4")
    stack.push(x)
    ((packed, scale, _),) = stack.kept
    assert (packed.nbytes + scale.nbytes) / x.numel() == pytest.approx(BYTES["int4"])


def test_runs_are_powers_of_two():
    assert [run_of(width) for width in (576, 896, 2048, 12, 7)] == [64, 64, 64, 4, 1]
