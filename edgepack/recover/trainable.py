"""What of a packed weight can be trained while its codes and its size stay what they are.

A master is a float32 copy of such a part: ``Q.d``, ``Q.m``, ``Q.dmin`` (the fp16 fields of the
grid; integer sub-scales and MXFP4's powers of two stay), ``L`` and ``R``. The forward pass uses
what the masters are stored as, and its gradient there is applied to the masters (straight-through,
Bengio et al., arXiv 1308.3432): so what is trained and judged is bit for bit what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from edgepack.core.weights import FactoredWeight, Grid, QuantizedTensor

KINDS = ("scales", "factors", "norms")
"""What there is to train: fields of grids; L and R; the gains of norms, and biases."""

Parts = dict[str, Tensor]
"""Float32 tensors by part of a weight: ``Q.d`` … ``[out, blocks]``, ``L``, ``R``."""

_LARGEST = torch.finfo(torch.float16).max


def masters(weight: FactoredWeight, kinds: Collection[str]) -> Parts:
    """The parts that are to be trained, as they are now."""
    found: Parts = {}
    if "scales" in kinds:
        fields = weight.Q.grid.items()
        found |= {f"Q.{k}": v.float() for k, v in fields if v.dtype == torch.float16}
    if "factors" in kinds and weight.L is not None and weight.R is not None:
        found |= {"L": weight.L.dequantize(), "R": weight.R.dequantize()}
    return found


def stored(weight: FactoredWeight, parts: Mapping[str, Tensor]) -> FactoredWeight:
    """The weight with the given masters in place of its own parts, rounded as a file holds them."""
    fields = {k: _half(parts[f"Q.{k}"]) for k in weight.Q.grid if f"Q.{k}" in parts}
    Q = replace(weight.Q, grid={**weight.Q.grid, **fields})
    if weight.L is None or weight.R is None or "L" not in parts:
        return replace(weight, Q=Q)
    return FactoredWeight(Q, _rounded(weight.L, parts["L"]), _rounded(weight.R, parts["R"]))


def values(weight: FactoredWeight, parts: Iterable[str]) -> Parts:
    """What a stored weight's parts are worth, for `dense`."""
    return {
        part: getattr(weight, part).dequantize()
        if part in ("L", "R")
        else weight.Q.grid[part.removeprefix("Q.")].float()
        for part in parts
    }


def dense(weight: FactoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """Q + L·R ``[out, in]`` as `FactoredWeight.dense` has it, a differentiable function of `parts`
    (every format decodes with torch operations that are linear in its fp16 fields)."""
    grid = {k: parts.get(f"Q.{k}", v) for k, v in weight.Q.grid.items()}
    Q = weight.Q.plugin.decode(weight.Q.codes, grid)
    if weight.L is None or weight.R is None:
        return Q
    L = parts["L"] if "L" in parts else weight.L.dequantize()
    R = parts["R"] if "R" in parts else weight.R.dequantize()
    return Q + L @ R


def _half(x: Tensor) -> Tensor:
    return x.clamp(-_LARGEST, _LARGEST).to(torch.float16)


def _rounded(start: QuantizedTensor, x: Tensor) -> QuantizedTensor:
    """x in the format of `start`, on its grid stretched as the largest |x| of each block has grown:
    no search at every step, and x = `start` comes back as it was."""
    grid: Grid = start.grid
    if grid:
        before, now = (_peaks(t, start.plugin.block_size) for t in (start.dequantize(), x))
        growth = torch.where(before > 0, now / before, 1.0)
        grid = {
            k: _half(v.float() * growth) if v.dtype == torch.float16 else v for k, v in grid.items()
        }
    return replace(start, codes=start.plugin.encode(x, grid), grid=grid)


def _peaks(x: Tensor, block_size: int) -> Tensor:
    return torch.unflatten(x, 1, (-1, block_size)).abs().amax(-1)


@dataclass
class Shelf:
    """Weights as they were decomposed, read when asked for; the first ones that fit into `room`
    bytes stay in memory (a step asks for all of them in turn, so any would do)."""

    read: Callable[[str], FactoredWeight]
    room: int
    kept: dict[str, FactoredWeight] = field(default_factory=dict)

    def __call__(self, name: str) -> FactoredWeight:
        """The weight of that name."""
        if name in self.kept:
            return self.kept[name]
        weight = self.read(name)
        size = sum(t.nbytes for t in weight.tensors().values())
        if size <= self.room:
            self.room -= size
            self.kept[name] = weight
        return weight
