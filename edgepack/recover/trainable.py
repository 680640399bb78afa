"""The parts of a packed weight that can be trained while its codes and its size do not change.

A master is a float32 copy of such a part: ``Q.d``, ``Q.m``, ``Q.dmin`` (the fp16 fields of the
grid; integer sub-scales and MXFP4's powers of two do not change), ``L`` and ``R``. The forward pass
uses the masters rounded to what a file stores. Its gradient there is applied to the masters
(straight-through, Bengio et al., arXiv 1308.3432). So the trained and evaluated model is bit for
bit the one that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from edgepack.core.weights import FactoredWeight, Grid, QuantizedTensor

KINDS = ("scales", "factors", "norms")
"""Kinds of trainable parts: fields of grids; L and R; gains of norms, and biases."""

Parts = dict[str, Tensor]
"""Float32 tensors by part of a weight: ``Q.d`` … ``[out, blocks]``, ``L``, ``R``."""

_LARGEST = torch.finfo(torch.float16).max


def masters(weight: FactoredWeight, kinds: Collection[str]) -> Parts:
    """Masters of the parts of these `kinds`, with their current values."""
    found: Parts = {}
    if "scales" in kinds:
        fields = weight.Q.grid.items()
        found |= {f"Q.{k}": v.float() for k, v in fields if v.dtype == torch.float16}
    if "factors" in kinds and weight.L is not None and weight.R is not None:
        found |= {"L": weight.L.dequantize(), "R": weight.R.dequantize()}
    return found


def apply_masters(weight: FactoredWeight, parts: Mapping[str, Tensor]) -> FactoredWeight:
    """The weight with the given masters in place of its parts, rounded to what a file stores."""
    fields = {k: _half(parts[f"Q.{k}"]) for k in weight.Q.grid if f"Q.{k}" in parts}
    Q = replace(weight.Q, grid={**weight.Q.grid, **fields})
    if weight.L is None or weight.R is None or "L" not in parts:
        return replace(weight, Q=Q)
    return FactoredWeight(Q, _rounded(weight.L, parts["L"]), _rounded(weight.R, parts["R"]))


def values(weight: FactoredWeight, parts: Iterable[str]) -> Parts:
    """Float32 values of a weight's parts, for `dense`."""
    return {
        part: getattr(weight, part).dequantize()
        if part in ("L", "R")
        else weight.Q.grid[part.removeprefix("Q.")].float()
        for part in parts
    }


def dense(weight: FactoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
    """Q + L·R ``[out, in]`` as in `FactoredWeight.dense`, but differentiable by `parts` (every
    format decodes with torch operations that are linear in its fp16 fields)."""
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
    """x in the format of `start`. Each block's scales grow like its largest |x|, so that no search
    is needed at every step, and x = `start` is returned unchanged."""
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
class WeightCache:
    """Decomposed weights, read on demand; the first ones that fit into `capacity` bytes stay in
    memory (a step reads all of them in turn, so it does not matter which)."""

    read: Callable[[str], FactoredWeight]
    capacity: int
    kept: dict[str, FactoredWeight] = field(default_factory=dict)

    def __call__(self, name: str) -> FactoredWeight:
        """The weight of that name."""
        if name in self.kept:
            return self.kept[name]
        weight = self.read(name)
        size = sum(t.nbytes for t in weight.tensors().values())
        if size <= self.capacity:
            self.capacity -= size
            self.kept[name] = weight
        return weight
