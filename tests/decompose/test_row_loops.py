"""Loops for devices that round all rows at once, beside the CPU's compiled ones.

Triton's own interpreter runs its kernels on the CPU; without Triton they are not tested.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from edgepack import formats
from edgepack.decompose import _kernels, _row_loops
from edgepack.decompose._rounders import rounder
from tests.support.problems import correlated

NAMES = ["q4_0", "q4_1", "q8_0", "q4_k", "iq4_nl", "int4_g32", "tq2_0", "nvfp4"]


INTERPRETED = "TRITON_INTERPRET"


class _Torch:
    device, rows = "cpu", 24

    def sweep(self, x, U, scale, offset, *rest):
        _row_loops.sweep(x, U, (scale, offset), *rest)

    def descend(self, gradient, H, scale, offset, *rest):
        _row_loops.descend(gradient, H, (scale, offset), *rest)


class _Triton:
    def __init__(self):
        from edgepack.decompose import _triton_loops

        self.device = "cpu" if INTERPRETED in os.environ else "cuda"
        self.rows = 3  # the interpreter is slow
        self.sweep, self.descend = _triton_loops.sweep, _triton_loops.descend


@pytest.fixture(params=["torch", "triton"])
def loops(request):
    if request.param == "torch":
        return _Torch()
    if INTERPRETED not in os.environ and not torch.cuda.is_available():
        pytest.skip("done by test_the_kernels_in_tritons_interpreter; without it, on CUDA")
    return _Triton()


def test_the_kernels_in_tritons_interpreter():
    """In a process of its own: Triton must not have been imported without the variable."""
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    names = "triton-q4_0 or triton-q4_1 or triton-nvfp4"
    tests = [sys.executable, "-m", "pytest", "-q", "-k", names, __file__]
    done = subprocess.run(tests, env={**os.environ, INTERPRETED: "1"}, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"......" in done.stdout  # a dot for each that passed


def call(function, device, inputs, facts, out):
    """Run a function on a device; `out` is filled on the CPU."""
    moved = [t.to(device, copy=True) for t in out]
    given = [fact.to(device) if isinstance(fact, torch.Tensor) else fact for fact in facts]
    function(*(t.to(device, copy=True) for t in inputs), tuple(given), moved)
    for t, new in zip(out, moved, strict=True):
        t.copy_(new)


def problem(name, rows):
    """A block, its U, and the format's candidates as units."""
    fmt = formats.get(name)
    size, draw = fmt.block_size, torch.Generator().manual_seed(5)
    x = torch.randn(rows, size, generator=draw)
    x[2] = 0.0
    H = correlated(size).double()
    U = torch.linalg.cholesky(torch.linalg.inv(H / H.diagonal().mean() + 0.1 * torch.eye(size))).T
    candidates = fmt.candidates(x.contiguous(), torch.ones(size))
    K = next(iter(candidates.values())).shape[1]
    flat = {field: v.reshape(rows * K, 1, *v.shape[2:]) for field, v in candidates.items()}
    units = [v[:, :: fmt.unit].view(rows, K, -1).transpose(1, 2) for v in fmt.affine(flat)]
    return fmt, x, U.float().contiguous(), [u.contiguous() for u in units], H.float()


def empty(rows, size):
    best = torch.zeros(rows, dtype=torch.int64)
    return best, torch.zeros(rows, size, dtype=torch.uint8), torch.zeros(rows, size)


def lookup(fmt):
    levels, bins, first = rounder(fmt).lookup
    return torch.from_numpy(levels), torch.from_numpy(bins), float(first)


@pytest.mark.parametrize("name", NAMES)
def test_sweep(loops, name):
    fmt, x, U, units, _ = problem(name, loops.rows)
    unit = torch.arange(fmt.block_size) // fmt.unit
    found, wanted = empty(*x.shape), empty(*x.shape)
    call(loops.sweep, loops.device, (x, U, *units, unit), lookup(fmt), found)
    arrays = (t.numpy() for t in (x.clone(), U, *units, unit))
    facts = (*rounder(fmt).lookup, np.zeros((0, 0), np.float32))
    _kernels.sweep(*arrays, *facts, *(t.numpy() for t in wanted))
    assert len(torch.unique(wanted[0])) > 1  # not always the first candidate
    costs = [t[2].square().sum(1) for t in (found, wanted)]
    assert torch.allclose(*costs, rtol=1e-4)
    same = found[0] == wanted[0]  # of two grids that cost the same, either may be taken
    assert same.float().mean() > 0.6
    assert (found[1][same] == wanted[1][same]).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_descend(loops, name):
    fmt, x, _, units, H = problem(name, loops.rows)
    columns = torch.arange(fmt.block_size) // fmt.unit
    scale, offset = (u[:, columns, 0].contiguous() for u in units)
    code = torch.randint(0, len(fmt.levels), x.shape, dtype=torch.uint8)
    Q = scale * fmt.levels[code.int()] + offset
    gradient = (x - Q) @ H
    found, wanted = ([code.clone(), Q.clone(), x - Q] for _ in range(2))
    call(loops.descend, loops.device, (gradient, H, scale, offset), lookup(fmt), found)
    none = np.zeros((0, 0), np.float32)
    arrays = (t.numpy() for t in (gradient.clone(), H))
    rest = (scale.numpy(), offset.numpy(), *rounder(fmt).lookup)
    _kernels.descend(*arrays, none, *rest, *(t.numpy() for t in wanted))
    assert not torch.equal(wanted[0], code)  # something was improved
    assert (found[0] == wanted[0]).float().mean() > 0.99
    costs = [((t[2] @ H) * t[2]).sum(1) for t in (found, wanted)]
    assert torch.allclose(*costs, rtol=1e-2, atol=1e-6)
