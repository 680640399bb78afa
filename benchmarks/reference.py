"""Our CALDERA beside the published algorithm in its simplest form, on one made-up weight.

    python -m benchmarks.reference [--rank 64] [--iterations 5] [--shared ../shared]

W is 1024 × 1024: Gaussian singular vectors, singular values that decay as i^-½. H is real: the
first 1024 inputs of SmolLM2-135M-Instruct's ffn_down in block 15, on 16,384 tokens of
calibration_datav3. Both sides spend 2.25 bits per weight on Q (2-bit codes, an f16 scale per 64)
and 16 on L and R.

Published (Saha et al., arXiv 2405.18886, algorithm 1, no lattice, no Hadamard): L·R, then Q, in
turns; Q by LDLQ over four evenly spaced levels whose scales are the best for each block of W − L·R
before the sweep; 1 % damping, no downdate. Ours: the same turns with a last L·R, a downdated H, and
scales fitted inside the sweep, on the same four levels (and, as a control, beginning with Q), and
on those of stock's `q2_0`, which are −1, 0, 1 and 2: the difference is the price of running in
stock llama.cpp. Errors are
‖(W−Q−LR)H^½‖²/‖WH^½‖², the best so far, after every round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.layer_error import plain
from benchmarks.same_type import RESULTS, recipe
from edgepack import formats
from edgepack.core.linalg import damp, inverse_factor
from edgepack.core.weights import relative_error
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.decompose.low_rank import downdate, exact_low_rank, low_rank
from edgepack.formats._levels import Table
from edgepack.formats._scalar import OneScale, level_probes
from edgepack.model.decoder import Decoder
from edgepack.pipeline import make_plan
from edgepack.recipe.read import parse

N, BLOCK, GROUP = 1024, 15, 64
FOUR_LEVELS = OneScale(
    "four levels",
    formats.get("q2_0").ggml_type,
    Table(-3, -1, 1, 3),
    formats.get("q2_0").layout,
    size=GROUP,
    probes=level_probes(
        torch.tensor([-3.0, -1.0, 1.0, 3.0]), torch.linspace(0.6, 3.0, 25), group=3
    ),
)
LEVELS = torch.tensor([-1.5, -0.5, 0.5, 1.5])
"""Of two bits, evenly spaced."""


def problem(shared: Path) -> tuple[Tensor, Tensor]:
    """(W, H), both ``[N, N]``."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(N, N, generator=generator)).Q for _ in range(2))
    W = U * torch.arange(1, N + 1).float() ** -0.5 @ V.T
    options = recipe("q4_0", shared)
    options["calibrate"] |= {"tokens": 16384, "objective": "layer"}
    plan = make_plan(parse(options), "gguf", Path())
    assert plan.text is not None
    (only,) = plain(Decoder(plan.model), plan.text.tokens, [BLOCK])
    return W, only["ffn_down"].train[:N, :N]


def scales(A: Tensor) -> Tensor:
    """The best scale of each group of A ``[rows, N]`` for `LEVELS`, of 32 tried; ``[rows, N]``."""
    groups = A.view(len(A), -1, GROUP)
    most = groups.abs().amax(-1, keepdim=True)
    tried = [most * (0.2 + 0.6 * i / 31) for i in range(32)]
    costs = [(groups - nearest(groups, s)).square().sum(-1, keepdim=True) for s in tried]
    best = torch.stack(costs).argmin(0, keepdim=True)
    return torch.stack(tried).gather(0, best)[0].expand_as(groups).reshape(A.shape)


def nearest(A: Tensor, scale: Tensor) -> Tensor:
    return ((A / scale - 0.5).round() + 0.5).clamp(LEVELS[0], LEVELS[-1]) * scale


def published_ldlq(A: Tensor, H: Tensor) -> Tensor:
    """LDLQ with scales that are chosen before the sweep."""
    scale, U = scales(A), inverse_factor(damp(H, 0.01)).float()
    Q, A = torch.empty_like(A), A.clone()
    for j in range(N):
        Q[:, j] = nearest(A[:, j], scale[:, j])
        error = (A[:, j] - Q[:, j]) / U[j, j]
        A[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
    return Q


def published(W: Tensor, H: Tensor, rank: int, iterations: int) -> list[float]:
    Q, errors = torch.zeros_like(W), list[float]()
    for _ in range(iterations):
        L, R = exact_low_rank(W - Q, H, rank)
        LR = (L @ R).float()
        Q = published_ldlq(W - LR, H)
        errors.append(relative_error(W, Q + LR, H))
    return errors


def ours(
    W: Tensor, H: Tensor, rank: int, iterations: int, fmt: OneScale, *, q_first: bool = False
) -> list[float]:
    """The rounds of `edgepack.decompose.caldera`, whose gate needs held-out tokens."""

    def sweep(target: Tensor, metric_of: Tensor) -> Tensor:
        found = ldlq(target, metric(metric_of, fmt.block_size, 0.01), fmt)
        return fmt.decode(found.codes, found.grid)

    def factors_for(rest: Tensor) -> tuple[Tensor, Tensor]:
        L, R = low_rank(rest, H, rank, "f16")
        return L.dequantize() @ R.dequantize(), R.dequantize()

    errors = list[float]()
    LR, R = factors_for(W - sweep(W, H) if q_first else W)
    for _ in range(iterations):
        Q = sweep(W - LR, downdate(H, R))
        LR, R = factors_for(W - Q)
        errors.append(relative_error(W, Q + LR, H))
    return errors


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    W, H = problem(options.shared.resolve())
    how = W, H, options.rank, options.iterations
    stock = formats.get("q2_0")
    sides = [published(*how), ours(*how, FOUR_LEVELS), ours(*how, FOUR_LEVELS, q_first=True)]
    sides.append(ours(*how, stock))
    lines = ["| rounds | published | edgepack, same levels | ratio | Q first | edgepack, q2_0 |"]
    lines.append("|---:|" + "---:|" * 5)
    for i in range(options.iterations):
        a, b, c, d = (min(errors[: i + 1]) for errors in sides)
        lines.append(f"| {i + 1} | {a:.4e} | {b:.4e} | {b / a:.2f} | {c:.4e} | {d:.4e} |")
    print("\n".join(lines))
    (RESULTS / "reference.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
