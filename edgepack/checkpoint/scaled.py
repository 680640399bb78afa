"""Weights stored as codes of 8 or 4 bits with scales: FP8 and MXFP4, decoded as they are read.

FP8 (OCP E4M3, E5M2): a weight ``X`` and ``X_scale_inv`` or ``X_scale``, by which it is multiplied:
one number, one a row, or one a block of rows and columns. MXFP4 (OCP MX v1.0): two codes a byte and
a power of two for 32 columns, as ``X_blocks`` and ``X_scales`` (gpt-oss) or ``X_packed`` and
``X_scale`` (compressed-tensors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.shards import FLOAT8, Place, names_in, refuse_unreadable
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError

Shape = tuple[int, ...]
SCALES = ("_scale_inv", "_scale")
"""Endings of the scale of a weight in FP8."""
NOT_WEIGHTS = (
    ".activation_scale",
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
    ".prob_scale",
    ".weight_shape",
)
"""Endings of tensors that say how activations or caches were rounded, which nobody has to do."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the sixteen codes of MXFP4."""
POWERS = torch.tensor([2.0 ** (e - 127) for e in range(256)])
"""Value of each byte of E8M0; the last, which means NaN, is infinite and so found by `check`."""
GROUP = 32
"""Columns that share a scale in MXFP4."""


class Source(Protocol):
    """A weight of a folder, as stored or made of several tensors."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def shape(self) -> Shape: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str:
        """The type of what `read` gives."""
        ...

    def read(self, files: SourceFiles) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Float8:
    """codes · scale, float32. `block` is (rows, columns) that share a scale; None if a scale is for
    a row or for all."""

    codes: Place
    scale: Place
    block: tuple[int, int] | None
    kind: str = "F32"

    @property
    def path(self) -> Path:
        """The file of the codes."""
        return self.codes.path

    @property
    def shape(self) -> Shape:
        """That of the codes."""
        return self.codes.shape

    @property
    def dtype(self) -> str:
        """That of the codes."""
        return self.codes.dtype

    def read(self, files: SourceFiles) -> Tensor:
        """The weight."""
        W, scale = self.codes.read(files).float(), _powers(self.scale.read(files))
        if self.block is None:
            shape = _spread(self.scale.shape, W.shape)
            return W.mul_(scale.reshape(shape or ()))
        high, wide = self.block
        by_row = scale.repeat_interleave(high, -2)[..., : W.shape[-2], :]
        for index, columns in enumerate(torch.split(W, wide, -1)):
            columns.mul_(by_row[..., index : index + 1])
        return W


@dataclass(frozen=True)
class MxFp4:
    """codes · 2^(scale − 127), float32. A stack of experts ``[E, out, in]`` is given as
    transformers has it, ``[E, in, out]``."""

    codes: Place
    scale: Place
    kind: str = "F32"
    dtype: str = "MXFP4"

    @property
    def path(self) -> Path:
        """The file of the codes."""
        return self.codes.path

    @property
    def shape(self) -> Shape:
        """Of the weight."""
        *lead, groups = self.scale.shape
        whole = (*lead, GROUP * groups)
        return (whole[0], whole[2], whole[1]) if len(whole) == 3 else whole

    def read(self, files: SourceFiles) -> Tensor:
        """The weight."""
        data, scale = self.codes.read(files), _powers(self.scale.read(files))
        data = data.reshape(*scale.shape, GROUP // 2)
        values = torch.tensor(E2M1)
        made = torch.empty(*scale.shape, GROUP // 2, 2)
        made[..., 0] = values[(data & 15).int()]
        made[..., 1] = values[(data >> 4).int()]
        made = made.reshape(*scale.shape, GROUP).mul_(scale[..., None]).flatten(-2)
        return made.transpose(-2, -1).contiguous() if made.ndim == 3 else made


@dataclass(frozen=True)
class Rows:
    """Part `index` of `count` with equally many rows."""

    whole: Source
    index: int
    count: int

    @property
    def path(self) -> Path:
        """The file of the whole."""
        return self.whole.path

    @property
    def shape(self) -> Shape:
        """Of the part."""
        return (self.whole.shape[0] // self.count, *self.whole.shape[1:])

    @property
    def dtype(self) -> str:
        """That of the whole."""
        return self.whole.dtype

    @property
    def kind(self) -> str:
        """That of the whole."""
        return self.whole.kind

    def read(self, files: SourceFiles) -> Tensor:
        """The part's values."""
        return self.whole.read(files).chunk(self.count)[self.index].clone()


def apart(found: Mapping[str, Source], architecture: Architecture) -> dict[str, Source]:
    """Weights by name, where a tensor may have the rows of several."""
    made: dict[str, Source] = {}
    for name, entry in found.items():
        names = [name] if isinstance(entry, Place) else names_in(name, entry.shape, architecture)
        count = len(names)
        parts = [entry] if count == 1 else [Rows(entry, i, count) for i in range(count)]
        made |= dict(zip(names, parts, strict=True))
    return made


def joined(
    found: Mapping[str, Place], place: str, block: tuple[int, int] | None
) -> dict[str, Source]:
    """Weights by name, of tensors by name: those in codes together with their scales. `block` is
    the configuration's; without one, it follows from the shapes."""
    rest = {name: entry for name, entry in found.items() if not name.endswith(NOT_WEIGHTS)}
    made: dict[str, Source] = {}
    for name, entry in found.items():
        pair = _mxfp4(name, rest)
        if pair is not None:
            whole, scale_name = pair
            made[whole] = _checked(name, MxFp4(entry, rest[scale_name]), place)
            del rest[name], rest[scale_name]
        elif entry.dtype in FLOAT8:
            scale_name = next((name + end for end in SCALES if name + end in rest), "")
            if not scale_name:
                raise CheckpointError(
                    f"{place}: {shorten(name, 80)} is stored as {entry.dtype} and has no scale",
                    hint="an incomplete download, or a variant that edgepack does not know",
                )
            made[name] = _float8(name, entry, rest[scale_name], place, block)
            del rest[name], rest[scale_name]
    for name, entry in rest.items():
        refuse_unreadable(entry.path, name, entry)
    return {**rest, **made}


def _mxfp4(name: str, rest: Mapping[str, Place]) -> tuple[str, str] | None:
    """The weight whose codes a tensor is, and the name of its scales; None for another tensor."""
    for codes, scales in (("_blocks", "_scales"), ("_packed", "_scale")):
        whole = name.removesuffix(codes)
        scale = rest.get(whole + scales)
        if whole != name and scale is not None and {rest[name].dtype, scale.dtype} == {"U8"}:
            return whole, whole + scales
    return None


def _checked(name: str, made: MxFp4, place: str) -> MxFp4:
    if 2 * math.prod(made.codes.shape) != math.prod(made.shape) or len(made.shape) not in (2, 3):
        raise _misfit(name, made.codes, made.scale, place)
    return made


def _float8(
    name: str, codes: Place, scale: Place, place: str, block: tuple[int, int] | None
) -> Float8:
    if _spread(scale.shape, codes.shape) is not None:
        return Float8(codes, scale, None)
    rows, columns = codes.shape[-2:] if len(codes.shape) > 1 else (0, 0)
    high, wide = scale.shape[-2:] if len(scale.shape) > 1 else (0, 0)
    if block is None and high and wide and not (rows % high or columns % wide):
        block = rows // high, columns // wide
    fits = (
        block is not None
        and (high, wide) == (-(-rows // block[0]), -(-columns // block[1]))
        and scale.shape[:-2] == codes.shape[:-2]
    )
    if not fits:
        raise _misfit(name, codes, scale, place)
    return Float8(codes, scale, block)


def _spread(scale: Shape, weight: Shape) -> Shape | None:
    """The shape in which scales multiply a weight by broadcasting; None if they are of blocks."""
    if math.prod(scale) == 1:
        return (1,)
    if len(scale) == 1 and scale[0] == weight[0]:
        return (scale[0], *([1] * (len(weight) - 1)))
    same = len(scale) == len(weight)
    if same and all(s in (1, w) for s, w in zip(scale, weight, strict=True)):
        return scale
    return None


def _powers(scale: Tensor) -> Tensor:
    """Scales as float32; a byte is an exponent (E8M0)."""
    if scale.dtype == torch.uint8:
        return POWERS[scale.int()]
    return scale.float()


def _misfit(name: str, codes: Place, scale: Place, place: str) -> CheckpointError:
    return CheckpointError(
        f"{place}: the scales of {shorten(name, 80)} have shape {list(scale.shape)}, "
        f"which does not fit {list(codes.shape)}",
        hint="the checkpoint is damaged, or a variant that edgepack does not know",
    )
