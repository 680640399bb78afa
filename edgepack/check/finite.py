"""Every weight is looked at once before anything is computed: is it a number, and can float16 hold
it?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgepack.checkpoint.base import Checkpoint
from edgepack.core.progress import Progress, Steps
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError

STAGE = "check"
HALF_MAX = 65504.0
HALF_MIN = 2.0**-25
"""Magnitudes up to this one are rounded to 0 by float16."""
LOST = 0.01
"""Share of a matrix's numbers that may round to 0 before it is told."""
CHUNK = 1 << 18
"""Numbers looked at together: they stay in a core's cache."""
SAMPLE = 1 << 16
"""Numbers of a matrix that are looked at for those that float16 rounds to 0."""
NAMED = 3
"""Weights that a warning names."""

BITS = {
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
}
"""Float type → (integer of its width, mask of the magnitude, bits of infinity). Magnitudes are in
the order of their bits, NaN above infinity: one pass finds the largest and what is no number."""

SCALES = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)),
    "Q3_K": (110, (108,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
    "IQ2_XXS": (66, (0,)),
    "IQ2_XS": (74, (0,)),
    "IQ2_S": (82, (0,)),
    "IQ3_XXS": (98, (0,)),
    "IQ3_S": (110, (0,)),
    "IQ4_NL": (18, (0,)),
    "IQ4_XS": (136, (0,)),
}
"""GGUF type → (bytes of a block, where its float16 scales begin; ggml-common.h). All else in a
block is a whole number."""
SMALL_SCALE = 1.0
"""With scales up to this, no type reaches float16's limit: 63 · 127 · 1 is its largest number."""


def check_values(checkpoint: Checkpoint) -> Steps[tuple[str, ...]]:
    """Read every weight once. Raises CheckpointError for one that holds NaN or infinity; returns
    warnings about weights that float16 cannot hold."""
    total = float(sum(spec.numel for spec in checkpoint.specs.values()))
    done = 0
    large: list[str] = []
    small: list[str] = []
    for name, spec in checkpoint.specs.items():
        yield Progress(STAGE, done, total, f"looking at {name}")
        values = _floats(checkpoint, name)
        largest = _largest(values)
        if not largest < torch.inf:
            raise _not_finite(name, values, spec.numel)
        if largest > HALF_MAX:
            large.append(name)
        elif values.ndim == 2 and _share_lost(values) > LOST:
            small.append(name)
        done += spec.numel
    yield Progress(STAGE, done, total)
    return tuple(_warnings(large, small))


def _floats(checkpoint: Checkpoint, name: str) -> Tensor:
    """A weight as it is stored if that is a float type; of a type in blocks the scales, if they say
    enough, else its values."""
    stored, kind = checkpoint.stored(name)
    if stored.dtype in BITS:
        return stored
    if kind in SCALES:
        scales = _scales(stored, *SCALES[kind])
        largest = _largest(scales)
        if largest <= SMALL_SCALE or not largest < torch.inf:
            return scales
    return checkpoint.tensor(name)


def _scales(data: Tensor, size: int, offsets: tuple[int, ...]) -> Tensor:
    """float16 ``[blocks · scales]`` of bytes in blocks."""
    blocks = data.reshape(-1, size)
    pairs = [blocks[:, start : start + 2] for start in offsets]
    return torch.cat(pairs).contiguous().view(torch.float16).flatten()


def _chunks(values: Tensor) -> Iterator[Tensor]:
    flat = values.reshape(-1)
    return (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def _largest(values: Tensor) -> float:
    """The largest magnitude; infinity or NaN if there are any."""
    integer, mask, _ = BITS[values.dtype]
    most = max(int((part.view(integer) & mask).max()) for part in _chunks(values))
    return float(torch.tensor([most], dtype=integer).view(values.dtype)[0])


def _share_lost(values: Tensor) -> float:
    """Share of a matrix that float16 rounds to 0, by numbers at even distances."""
    flat = values.reshape(-1)
    sample = flat[:: max(1, len(flat) // SAMPLE)].float().abs()
    return float(((sample > 0) & (sample <= HALF_MIN)).float().mean())


def _not_finite(name: str, values: Tensor, numel: int) -> CheckpointError:
    count = sum(int((~torch.isfinite(part)).sum()) for part in _chunks(values))
    what = "values" if values.numel() == numel else "scales of blocks"
    return CheckpointError(
        f"{shorten(name, 100)}: {count} of {values.numel()} {what} are NaN or infinite",
        hint="the checkpoint is damaged (an overflow in training or merging, or a bad download); "
        "take one whose weights are numbers",
    )


def _warnings(large: list[str], small: list[str]) -> Iterator[str]:
    for names, problem in (
        (large, f"values beyond {HALF_MAX:.0f}, the largest of float16"),
        (small, "many values so small that float16 rounds them to 0"),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            called = ", ".join(shorten(name, 80) for name in names[:NAMED])
            yield f"{called}{more}: {problem}"
