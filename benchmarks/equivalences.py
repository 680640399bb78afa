"""What exact changes of a block's matrices are worth before they are rounded.

    python -m benchmarks.equivalences [--types q2_0,q3_k,q4_0] [--blocks 4,14,24]

A change of basis between two matrices leaves the block as it is: W' = A W B is rounded with
H' = B⁻¹ H B⁻ᵀ and H_out' = A⁻ᵀ H_out A⁻¹, and what it costs is measured where W is. The figures are
the KL that the errors are expected to add on held-out tokens (½ tr(H_out E H Eᵀ) / out, summed over
the matrices that a change touches), as a ratio to rounding them unchanged; below 1 a change pays.
SmolLM2-135M-Instruct, calibrated on 16,384 tokens of calibration_datav3. Scales of rows are not in
the table: the scales of blocks take them up, as they take up the sign of a block where a grid is
lopsided.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.same_type import RESULTS, recipe
from edgepack import formats
from edgepack.calibration.moments import load_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.base import Dimensions
from edgepack.core.hadamard import random_hadamard
from edgepack.core.progress import finish
from edgepack.core.weights import Hessian, quadratic_cost
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.formats._affine import Affine
from edgepack.pipeline import make_plan, run
from edgepack.recipe.read import parse

DAMPING = 0.03
Bases = tuple[Tensor | None, Tensor | None]
"""A ``[out, out]`` and B ``[in, in]`` of a matrix; None for the identity."""
Block = Mapping[str, tuple[Tensor, Hessian]]
"""W and its Hessian by role."""
Change = Callable[[Block, Dimensions], dict[str, Bases]]


def cost(W: Tensor, H: Hessian, fmt: Affine, A: Tensor | None, B: Tensor | None) -> float:
    """The KL that rounding A W B is expected to add, on held-out tokens."""
    A_back, B_back = (None if M is None else torch.linalg.inv(M) for M in (A, B))
    H_out = moved(H.out_train, None if A_back is None else A_back.T)
    m = metric(moved(H.train, B_back), fmt.block_size, DAMPING, H_out, fmt.group)
    rounded = ldlq(product(A, W, B), m, fmt).dequantize()
    E = W - product(A_back, rounded, B_back)
    return 0.5 * quadratic_cost(E, H.held_out, H.out_held_out) / len(W)


def moved(H: Tensor | None, M: Tensor | None) -> Tensor | None:
    """M H Mᵀ."""
    return H if H is None or M is None else (M @ H.double() @ M.T).float()


def product(A: Tensor | None, W: Tensor, B: Tensor | None) -> Tensor:
    """A W B as float32."""
    W = W.double()
    W = W if A is None else A @ W
    return (W if B is None else W @ B).float()


# ------------------------------------------------------------------------------- the changes


def flat(*weights: Tensor) -> Tensor:
    """The diagonal matrix that gives all columns of some matrices the same root mean square."""
    scale = torch.cat(weights).double().square().mean(0).sqrt().clamp_min(1e-9)
    return torch.diag(scale.log().mean().exp() / scale)


def norm_to_attention(block: Block, _: Dimensions) -> dict[str, Bases]:
    """Channels scaled between the norm and q, k and v."""
    readers = ("attn_q", "attn_k", "attn_v")
    return dict.fromkeys(readers, (None, flat(*(block[role][0] for role in readers))))


def norm_to_feed_forward(block: Block, _: Dimensions) -> dict[str, Bases]:
    """Channels scaled between the norm and gate and up."""
    readers = ("ffn_gate", "ffn_up")
    return dict.fromkeys(readers, (None, flat(*(block[role][0] for role in readers))))


def up_to_down(block: Block, _: Dimensions) -> dict[str, Bases]:
    """Channels scaled between up and down."""
    B = flat(block["ffn_down"][0])
    return {"ffn_down": (None, B), "ffn_up": (torch.linalg.inv(B), None)}


def order_of_down(block: Block, _: Dimensions) -> dict[str, Bases]:
    """Channels between up and down in the order of their size, so that blocks have alike ones."""
    W = block["ffn_down"][0]
    order = torch.eye(W.shape[1], dtype=torch.float64)[W.square().mean(0).argsort(descending=True)]
    return {"ffn_down": (None, order.T), "ffn_up": (order, None)}


def values(M: Callable[[Tensor, int], Tensor]) -> Change:
    """A matrix for every head of keys and values, between v and o."""

    def change(block: Block, d: Dimensions) -> dict[str, Bases]:
        o, size, groups = block["attn_output"][0], d.head_dim, d.num_key_value_heads
        share = d.num_attention_heads // groups
        heads = [o[:, g * share * size : (g + 1) * share * size] for g in range(groups)]
        found = [M(torch.cat(list(h.split(size, dim=1))), g) for g, h in enumerate(heads)]
        B = torch.block_diag(*(R for R in found for _ in range(share)))
        return {
            "attn_output": (None, B),
            "attn_v": (torch.block_diag(*map(torch.linalg.inv, found)), None),
        }

    return change


def hadamard(o: Tensor, seed: int) -> Tensor:
    return random_hadamard(o.shape[1], seed) / o.shape[1] ** 0.5


def principal(o: Tensor, _: int) -> Tensor:
    """The basis in which the columns of o are orthogonal."""
    return torch.linalg.svd(o.double(), full_matrices=False).Vh.T


def pairs(angle: float) -> Change:
    """Every pair of rotary dimensions of q and k turned by an angle."""

    def change(_: Block, d: Dimensions) -> dict[str, Bases]:
        half = d.head_dim // 2
        c, s = (f(torch.tensor(angle).deg2rad().double()) for f in (torch.cos, torch.sin))
        eye = torch.eye(half, dtype=torch.float64)
        turn = torch.cat([torch.cat([c * eye, -s * eye], 1), torch.cat([s * eye, c * eye], 1)])
        heads = {"attn_q": d.num_attention_heads, "attn_k": d.num_key_value_heads}
        return {role: (torch.block_diag(*[turn] * n), None) for role, n in heads.items()}

    return change


CHANGES: dict[str, Change] = {
    "norm ↔ q, k, v: channels scaled": norm_to_attention,
    "norm ↔ gate, up: channels scaled": norm_to_feed_forward,
    "up ↔ down: channels scaled": up_to_down,
    "up ↔ down: channels sorted": order_of_down,
    "v ↔ o: random Hadamard": values(hadamard),
    "v ↔ o: principal axes of o": values(principal),
    "v ↔ o: channels scaled": values(lambda o, _: flat(o)),
    "q ↔ k: pairs turned by 45°": pairs(45),
    "q ↔ k: pairs turned by 20°": pairs(20),
}


# ------------------------------------------------------------------------------- the table


def read(model: Checkpoint, hessians: Path, block: int) -> Block:
    """The matrices of a block."""
    specs = [s for s in model.specs.values() if s.block == block and s.is_matrix]
    return {
        s.role: (model.tensor(s.name), load_hessian(hessians / str(block), s.role)) for s in specs
    }


def ratios(block: Block, d: Dimensions, name: str) -> dict[str, tuple[float, float]]:
    """By change: cost before and after it, summed over the matrices that it touches."""
    fmt = formats.get(name)
    assert isinstance(fmt, Affine)
    plain = {
        role: cost(W, H, fmt, None, None)
        for role, (W, H) in block.items()
        if W.shape[1] % fmt.block_size == 0
    }
    found = {}
    for label, change in CHANGES.items():
        bases = {role: b for role, b in change(block, d).items() if role in plain}
        after = sum(cost(*block[role], fmt, *b) for role, b in bases.items())
        if bases:
            found[label] = (sum(plain[role] for role in bases), after)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default="q2_0,q3_k,q4_0")
    parser.add_argument("--blocks", default="4,14,24")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    given = recipe("q4_0", options.shared.resolve())
    given["calibrate"]["tokens"] = 16_384
    plan = make_plan(parse(given), "gguf", Path())
    finish(run(plan, until=Calibrate.name))
    calibration = plan.find(Calibrate)
    assert calibration is not None
    blocks, types = options.blocks.split(","), options.types.split(",")
    found = {
        (name, index): ratios(
            read(plan.model, calibration.folder, int(index)), plan.model.dimensions, name
        )
        for index in blocks
        for name in types
    }
    lines = ["| change | " + " | ".join(f"{t}, block {b}" for t in types for b in blocks) + " |"]
    lines.append("|---|" + "---:|" * (len(types) * len(blocks)))
    for label in CHANGES:
        both = [found[name, b].get(label) for name in types for b in blocks]
        cells = ["–" if pair is None else f"{pair[1] / pair[0]:.3f}" for pair in both]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    print("\n".join(lines))
    (RESULTS / "equivalences.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
