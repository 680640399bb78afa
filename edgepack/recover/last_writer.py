"""The matrix that writes the residual stream last in a block. The block's output is linear in it.

Its best value is therefore known in closed form. With a the inputs that it gets from the packed
matrices before it, and r what the block's output lacks, W + ΔW makes up for most of r if

    ΔW = (Σ r aᵀ) (Σ a aᵀ + λ I)⁻¹

(ridge regression). For the same reason its rounding is weighed by these a, not by the original's:
an error E then changes the output by E a and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.architectures.base import BEHIND, LINEAR_ROLES, WRITE
from edgepack.calibration.moments import Moments
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, wide
from edgepack.core.linalg import damp, matmul64
from edgepack.core.weights import Hessian, quadratic_cost
from edgepack.decompose.ldlq import OUT_DAMPING
from edgepack.decompose.weights import Item
from edgepack.model.block import Block
from edgepack.model.stream import Activations, Batch

FOLDER = "last-writer"
"""Folder of its H, beside those of the matrices before it."""
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""λ, in units of the mean diagonal of Σ a aᵀ; held-out tokens choose."""


def find(items: Iterable[Item], block: Block) -> Item | None:
    """The one of a block's matrices that writes the stream last. None where there are several
    (experts), or where a norm or another matrix stands between it and the block's output."""
    used = [item for item in items if item.spec.part in block.linears]
    last = max((LINEAR_ROLES.index(item.spec.role) for item in used), default=-1)
    found = [item for item in used if LINEAR_ROLES.index(item.spec.role) == last]
    if len(found) != 1 or block.carried is not None:
        return None
    role = found[0].spec.role
    return found[0] if role in WRITE and BEHIND.get(role) not in block.weights else None


def memory(model: Checkpoint) -> int:
    """Most bytes of a `Fit`: of both kinds of tokens the sums of H and H itself, in float64, or
    later H with a factor and what is factored; Σ r aᵀ and a solution with copies."""
    shapes = [spec.shape for spec in model.specs.values() if spec.role in WRITE]
    return max((24 * columns**2 + 48 * rows * columns for rows, columns in shapes), default=0)


def metric(item: Item | None) -> Tensor | None:
    """H_out of the residual stream behind a writer, damped and of mean diagonal 1, float32
    ``[hidden, hidden]``; None where it is not known."""
    H_out = None if item is None else item.hessian().out_train
    if H_out is None or H_out.dim() != 2:
        return None
    return H_out.float() / H_out.diagonal().mean() + OUT_DAMPING * torch.eye(len(H_out))


@dataclass(frozen=True)
class Fit:
    """Least squares for a writer: moments of its inputs, and of them with what is missing."""

    H: Hessian
    """Σ a aᵀ per token, plain (w_t = 1), of training and held-out tokens, float32; with H_out."""
    missing: dict[bool, Tensor]
    """Σ r aᵀ per token, float64 ``[hidden, in]``; of held-out tokens at True."""

    def change(self) -> Tensor:
        """ΔW, float64 ``[hidden, in]``, with the λ that is best on held-out tokens; 0 if none
        brings the block's output closer there."""
        H, unit = self.H.train, self.H.train.diagonal().mean()
        best, least = torch.zeros_like(self.missing[False]), 0.0
        for ridge in RIDGES:
            factor = torch.linalg.cholesky(damp(H, ridge))
            change = torch.cholesky_solve(self.missing[False].T / unit, factor).T
            if (lost := self._lost(change)) < least:
                best, least = change, lost
        return best

    def _lost(self, change: Tensor) -> float:
        """What the change adds to the mean of (r − ΔW a)ᵀ H_out (r − ΔW a) on held-out tokens."""
        H_out = self.H.out_train
        missing = self.missing[True]
        weighed = missing if H_out is None else matmul64(missing.T, H_out).T
        return quadratic_cost(change, self.H.held_out, H_out) - 2 * float((change * weighed).sum())


@torch.no_grad()
def fit(
    item: Item, block: Block, inputs: Activations, targets: Activations, batches: list[Batch]
) -> Fit:
    """The `Fit` of a block's last writer, with the block as it is now."""
    part, scale = item.spec.part, block.dimensions.residual_scale
    moments, seen = Moments(), dict[str, Tensor]()
    missing = {side: torch.zeros(item.spec.shape, dtype=torch.float64) for side in (False, True)}

    def linear(role: str, x: Tensor) -> Tensor:
        seen[role] = x
        return block.linear(role, x)

    for batch in batches:
        x, target = (a.read(batch.rows).to(block.device) for a in (inputs, targets))
        r = ((target - block(x, linear)) / scale).flatten(0, 1)
        a = seen[part].flatten(0, 1)
        moments.add(part, a, None, batch.held_out)
        moments.count(len(a), batch.held_out)
        missing[batch.held_out] += wide(r.T @ a).to(CPU)
    missing = {side: sums / moments.tokens[side] for side, sums in missing.items()}
    plain, known = moments.hessians()[part], item.hessian()
    out = (known.out_train, known.out_held_out)
    sides = (plain.train.float(), plain.held_out.float())
    return Fit(Hessian(*sides, known.imatrix, *out), missing)
