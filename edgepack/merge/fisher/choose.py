"""How far a merge goes from the plain mean: decided by the tokens that calibration holds out.

H and G of a short text are noisy, and the minimum on them would fit their noise. So each weight
keeps what costs least on held-out tokens, the plain mean included: nothing worse than that on
them is ever written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from edgepack.merge.fisher.solve import Term, closed_form, conjugate_gradients, cost

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried where the solution is direct."""
RIDGE = 1e-2
"""Ridge under conjugate gradients, where the number of steps is what held-out tokens choose."""
STEPS = 20
PATIENCE = 2
"""Steps without a lower held-out cost after which it ends."""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Found:
    """D ``[out, in]``, and the held-out costs of the plain mean and of it."""

    D: Tensor
    plain: float
    cost: float


def choose(train: Sequence[Term], held_out: Sequence[Term]) -> Found:
    """The candidate that costs least in `held_out`; D is 0 for the plain mean."""
    dtype = torch.float32
    judges = [term.to(dtype) for term in held_out]
    plain = best = cost(torch.zeros_like(judges[0].E), judges)
    kept, worse = torch.zeros_like(judges[0].E), 0
    for D in _candidates([term.to(dtype) for term in train]):
        value = cost(D, judges)
        if value < best:
            kept, best, worse = D, value, 0
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return Found(kept, plain, best)


def _candidates(terms: Sequence[Term]) -> Iterator[Tensor]:
    """From the one that trusts the text most, or step by step towards it."""
    if not any(float(term.E.abs().max()) for term in terms):
        return
    if any(term.G is None for term in terms):
        for damping in DAMPINGS:
            yield closed_form(terms, damping).float()
        return
    for D, residual in islice(conjugate_gradients(terms, RIDGE), STEPS):
        yield D
        if residual < TOLERANCE:
            return
