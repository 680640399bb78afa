"""Rounding of one block in the sweep: a pair of compiled loops for each way of choosing codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgepack.core.accelerator import CPU, moved
from edgepack.decompose import _group_kernels, _kernels, _row_loops
from edgepack.formats._codebook import Codebook
from edgepack.formats._scalar import Scalar
from edgepack.formats.base import Format


class Rounder(Protocol):
    """The part of LDLQ that depends on how a format chooses codes; tensors are float32."""

    anywhere: bool
    """Whether independent rows are rounded on the device that they are on. All else comes to the
    CPU for its loops."""

    def importance(self, U: Tensor) -> Tensor:
        """Cost of an error in each column after error feedback into the later columns, 1/U_jj²,
        from the block's U ``[size, size]``, in the order of processing."""

    def sweep(
        self,
        x: Tensor,
        U: Tensor,
        U_out: Tensor,
        units: Sequence[Tensor],
        unit: Tensor,
        out: Sequence[Tensor],
    ) -> None:
        """Round x ``[rows, size]`` with error feedback under K grids; fills `out` = (best, codes,
        errors). `units` are scales and offsets ``[rows, units, K]``, `unit` ``[size]`` the unit of
        each column; see `_kernels.sweep`."""

    def descend(
        self,
        gradient: Tensor,
        H: Tensor,
        H_out: Tensor,
        affine: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        """One round of coordinate descent in place; `affine` are scales and offsets ``[rows,
        size]``, `out` = (codes, Q, residual); see `_kernels.descend`."""


@singledispatch
def rounder(fmt: Format) -> Rounder:
    """The rounder of a format."""
    raise TypeError(f"{fmt.name} is not rounded with error feedback")


class ScalarRounder:
    """Rounds column by column."""

    anywhere = True

    def __init__(self, fmt: Scalar) -> None:
        bins, first = fmt.code_levels.bins
        self.tensors = (fmt.levels, bins, float(first))
        self.lookup = (fmt.levels.numpy(), bins.numpy(), np.float32(first))

    def importance(self, U: Tensor) -> Tensor:
        """See `Rounder`."""
        return U.diagonal() ** -2

    def sweep(
        self,
        x: Tensor,
        U: Tensor,
        U_out: Tensor,
        units: Sequence[Tensor],
        unit: Tensor,
        out: Sequence[Tensor],
    ) -> None:
        """See `Rounder`."""
        if x.device != CPU and not len(U_out):
            _row_loops.sweep(x, U, units, unit, moved(self.tensors, x.device), out)
            return
        _call(_kernels.sweep, (x, U, *units, unit), self.lookup, (U_out.contiguous(), *out))

    def descend(
        self,
        gradient: Tensor,
        H: Tensor,
        H_out: Tensor,
        affine: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        """See `Rounder`."""
        if gradient.device != CPU and not len(H_out):
            _row_loops.descend(gradient, H, affine, moved(self.tensors, gradient.device), out)
            return
        _call(_kernels.descend, (gradient, H, H_out, *affine), self.lookup, out)


class CodebookRounder:
    """Rounds group by group; the columns of a group are neighbours in the order of processing."""

    anywhere = False

    def __init__(self, fmt: Codebook) -> None:
        self.book, self.group = fmt.book, fmt.group

    def importance(self, U: Tensor) -> Tensor:
        """See `Rounder`."""
        return self._inverse(U).square().sum(2).flatten()

    def sweep(
        self,
        x: Tensor,
        U: Tensor,
        U_out: Tensor,
        units: Sequence[Tensor],
        unit: Tensor,
        out: Sequence[Tensor],
    ) -> None:
        """See `Rounder`."""
        inverse = self._inverse(U)
        weight = inverse.square().sum(2)
        inputs = (x, U, inverse, weight, units[0], unit[:: self.group], U_out)
        _call(_group_kernels.sweep, inputs, (self.book,), out)

    def descend(
        self,
        gradient: Tensor,
        H: Tensor,
        H_out: Tensor,
        affine: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        """See `Rounder`."""
        inputs = (gradient, H, H_out, self._inverse(H), affine[0][:, :: self.group])
        _call(_group_kernels.descend, inputs, (self.book,), out)

    def _inverse(self, matrix: Tensor) -> Tensor:
        """Inverses of the diagonal blocks ``[groups, group, group]``."""
        size = self.group
        parts = matrix.unfold(0, size, size).unfold(1, size, size)
        own: Tensor = parts.diagonal().permute(2, 0, 1).double()
        inverse: Tensor = torch.linalg.inv(own)
        return inverse.float()


@rounder.register
def _(fmt: Scalar) -> Rounder:
    return ScalarRounder(fmt)


@rounder.register
def _(fmt: Codebook) -> Rounder:
    return CodebookRounder(fmt)


def _call(
    kernel: Callable[..., None], inputs: Sequence[Tensor], facts: Any, outputs: Sequence[Tensor]
) -> None:
    """Run a compiled kernel on tensors; `outputs` are filled in place. Those of another device come
    to the CPU for it."""
    arrays = (t.cpu().contiguous().numpy() for t in inputs)
    filled = [t.cpu() for t in outputs]
    kernel(*arrays, *facts, *(t.numpy() for t in filled))
    for output, new in zip(outputs, filled, strict=True):
        if new is not output:
            output.copy_(new)
