"""Where a low-rank part pays for its bytes, and what each step of CALDERA adds: a table, a picture.

    python -m benchmarks.controls [--blocks 3] [--ranks 16,64] [--shared ../shared]

SmolLM2-135M-Instruct, every linear weight of evenly spaced blocks, Q in `q2_0`, factors q8_0, H and
H_out from 49,152 tokens of calibration_datav3 (as `benchmarks.same_type`). A point is the KL to be
expected of a way to pack these weights (½·tr(H_out E H Eᵀ)/out on held-out tokens, summed) over the
bits per weight it takes, factors included. Beside rank 0 in other types and their mixtures: our
caldera (L·R first, H downdated, two rounds), the same beginning with Q, and the same without the
downdate. What recovery adds on top is `benchmarks.recover`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.same_type import RESULTS, recipe
from edgepack import formats
from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.moments import load_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.comparison.plots import STOCK_COLOUR, chart
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, Hessian, QuantizedTensor, quadratic_cost
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.decompose.low_rank import downdate, low_rank
from edgepack.pipeline import make_plan, run
from edgepack.recipe.read import parse

PLAIN = ("q2_0", "mxfp4", "q4_0", "iq4_nl", "q5_0")
"""Types that fit width 576, for rank 0."""
DAMPING, ROUNDS = 0.03, 2


def packed(
    W: Tensor, H: Hessian, *, rank: int, q_first: bool = False, down: bool = True
) -> FactoredWeight:
    """`edgepack.decompose.caldera`'s alternation with its steps to choose from."""
    fmt, side = formats.get("q2_0"), H.out_train

    def factors_for(rest: Tensor) -> tuple[QuantizedTensor, QuantizedTensor]:
        return low_rank(rest, H.train, rank, "q8_0", side)

    first = plain(W, H, "q2_0").Q
    tried = [FactoredWeight(first, *factors_for(W - first.dequantize()))]
    L, R = (tried[0].L, tried[0].R) if q_first else factors_for(W)
    for _ in range(ROUNDS):
        assert L is not None
        assert R is not None
        free = downdate(H.train, R.dequantize()) if down else H.train
        where = metric(free, fmt.block_size, DAMPING, side, fmt.group)
        Q = ldlq(W - L.dequantize() @ R.dequantize(), where, fmt)
        L, R = factors_for(W - Q.dequantize())
        tried.append(FactoredWeight(Q, L, R))
    return min(tried, key=lambda found: kl(W, found, H))


def plain(W: Tensor, H: Hessian, name: str) -> FactoredWeight:
    fmt = formats.get(name)
    return FactoredWeight(
        ldlq(W, metric(H.train, fmt.block_size, DAMPING, H.out_train, fmt.group), fmt)
    )


def kl(W: Tensor, found: FactoredWeight, H: Hessian) -> float:
    return quadratic_cost(W - found.dense(), H.held_out, H.out_held_out) / (2 * len(W))


WAYS: dict[str, Callable[..., FactoredWeight]] = {
    "caldera": packed,
    "Q first": partial(packed, q_first=True),
    "no downdate": partial(packed, down=False),
}


def mixed(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The best mixtures of types, some weights in one and some in the next: a lower hull, whose
    edges are straight where KL is (not its logarithm)."""
    hull: list[tuple[float, float]] = []
    for point in sorted(points):
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    x = np.concatenate([np.linspace(a[0], b[0], 20) for a, b in pairwise(hull)])
    return x.tolist(), np.interp(x, *zip(*hull, strict=True)).tolist()


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def draw(points: dict[str, list[tuple[float, float]]], path: Path) -> None:
    figure, axes = chart(
        "Q in q2_0 and a low-rank part, beside rank 0 in other types",
        "bits per weight, factors included",
        "expected KL of these weights, nats a token",
    )
    axes.plot(
        *mixed(points["rank 0"]), color=STOCK_COLOUR, linestyle="--", label="rank 0, types mixed"
    )
    axes.plot(*zip(*points["rank 0"], strict=True), "o", color=STOCK_COLOUR)
    for label in WAYS:
        axes.plot(*zip(*sorted(points[label]), strict=True), marker="o", label=label)
    for name, point in zip(PLAIN, points["rank 0"], strict=True):
        axes.annotate(name, point, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    plan = make_plan(parse(recipe("q4_0", options.shared.resolve())), "gguf", Path())
    finish(run(plan, until=Calibrate.name))
    calibration, model = plan.find(Calibrate), plan.model
    assert calibration is not None
    count = model.dimensions.num_hidden_layers
    bits, cost, elements = defaultdict[str, float](float), defaultdict[str, float](float), 0
    for block in range(count // (2 * options.blocks), count, -(-count // options.blocks)):
        for role in LINEAR_ROLES:
            W = model.tensor(model.architecture.hf_name(role, block))
            H = load_hessian(calibration.folder / str(block), role)
            elements += W.numel()
            found = {f"rank 0|{name}": plain(W, H, name) for name in PLAIN}
            for rank in map(int, options.ranks.split(",")):
                found |= {f"{way}|{rank}": pack(W, H, rank=rank) for way, pack in WAYS.items()}
            for label, weight in found.items():
                bits[label] += 8 * weight.nbytes
                cost[label] += kl(W, weight, H)
        print(f"block {block}", flush=True)
    lines = ["| way | | bits per weight | expected KL |", "|---|---|---:|---:|"]
    points = defaultdict[str, list[tuple[float, float]]](list)
    for label in bits:
        way, what = label.split("|")
        points[way].append((bits[label] / elements, cost[label]))
        lines.append(f"| {way} | {what} | {bits[label] / elements:.3f} | {cost[label]:.5f} |")
    for way in WAYS:
        points[way].append(points["rank 0"][0])
    print("\n".join(lines))
    (RESULTS / "controls.md").write_text("\n".join(lines) + "\n")
    draw(points, RESULTS / "controls.png")


if __name__ == "__main__":
    main()
