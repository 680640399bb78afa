"""Formats, size and context for a model on a device, each with the figures that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgepack import formats
from edgepack.catalogue.published import PUBLISHED
from edgepack.checkpoint import Checkpoint
from edgepack.core.tables import format_size
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.errors import RecipeError
from edgepack.init.devices import DEVICES, Device, Kernels
from edgepack.init.memory import Needs, contexts, needs
from edgepack.planning import target as targets
from edgepack.planning.device import Slow, slow_types
from edgepack.planning.formats import UNQUANTIZED
from edgepack.planning.target import Target
from edgepack.recipe.export import Export, Onnx

WHOLE = "int8"
"""A format with a scale for a whole row, which needs no calibration."""
LEAST_BITS = 3.0
"""Bits per weight below which nothing is proposed. At 3.0, SmolLM2-135M has the original's top
token in 44 % of all places (benchmarks/results/sizes.md); larger models lose less."""


@dataclass(frozen=True)
class Choice:
    """What a recipe for `device` says. `room` are the bytes that its memory leaves for the files,
    `size` those to spend on `candidates`; without candidates all matrices are in `format`."""

    device: Device
    target: Target
    needs: Needs
    room: int
    size: int
    bits: float
    """Per weight, at `size`."""
    candidates: tuple[str, ...] = ()
    format: str | None = None
    small: tuple[str, ...] = ()
    """Candidates that are there because no fast one is small enough."""
    unfit: tuple[str, ...] = ()
    """Fast formats whose blocks fit no matrix of the model."""
    slow: Mapping[str, Slow] | None = None
    """Types that the device's profile found slow: the larger type that is faster."""

    @property
    def kernels(self) -> Kernels:
        """The device's formats for the target."""
        return self.device.targets[self.target.name]

    @property
    def is_all(self) -> bool:
        """Whether the files get all the room that there is."""
        return self.size >= self.room


def choose(model: Checkpoint, device: Device, target: str | None = None) -> Choice:
    """The choice for a model; raises `RecipeError` if it does not fit on the device."""
    kind = _target(model, device, target)
    kernels, slow = device.targets[kind.name], {}
    if device.profile is not None:
        every = [*kernels.fast, *kernels.small]
        slow = slow_types(model, every, device.profile)
        kernels = replace(kernels, fast=tuple(n for n in kernels.fast if n not in slow))
    best: Choice | None = None
    is_calibrated = _is_calibrated(model, kernels)
    if not is_calibrated and len(kernels.fast) > 1:
        kernels = replace(kernels, fast=(WHOLE,))
    overhead = _overhead(model, kind, kernels.fast)
    for wanted in contexts(model, device.context):
        found = needs(model, kind.name, wanted)
        room = (device.usable - found.cache - found.runtime) // kind.copies
        empty = Choice(device, kind, found, room, 0, 0.0)
        if is_calibrated:
            best = _spent(model, empty, kernels, overhead)
        else:
            best = _whole(model, empty, kernels.fast[0], overhead)
        if best.size <= room:
            return replace(best, slow=slow)
    assert best is not None
    raise _too_large(model, best)


def _target(model: Checkpoint, device: Device, name: str | None) -> Target:
    """The target to write: the one that is wished, or the device's first that holds the family."""
    family = model.architecture
    if name is None:
        name = next(
            (one for one in device.targets if targets.kind(one).why_not(family) is None),
            next(iter(device.targets)),
        )
    kind = targets.kind(name)
    if name not in device.targets:
        raise RecipeError(
            f"--target: there are no files of {name} for {device.name}",
            hint="choose one of: " + ", ".join(device.targets),
        )
    if reason := kind.why_not(family):
        raise RecipeError(f"--target: {reason}", hint="edgepack models says what works for each")
    return kind(Export(onnx=Onnx(profile=device.targets[name].profile)))


def _whole(model: Checkpoint, empty: Choice, name: str, overhead: int) -> Choice:
    """The `empty` choice with all matrices in a format that needs no calibration."""
    matrices = list(_matrices(model))
    size = _bytes(matrices, (name,))
    bits = 8 * size / sum(spec.numel for spec in matrices)
    return replace(empty, size=size + overhead, bits=bits, format=name)


def _spent(model: Checkpoint, empty: Choice, kernels: Kernels, overhead: int) -> Choice:
    """The `empty` choice with what fits best into its room; with more than that if nothing fits.
    `overhead` are the bytes of the files that are no matrices."""
    matrices = list(_matrices(model))
    count = sum(spec.numel for spec in matrices)
    fast, small = (
        [name for name in names if any(_fits(name, spec) for spec in matrices)]
        for names in (kernels.fast, kernels.small)
    )
    names = fast
    if _bytes(matrices, names) + overhead > empty.room and small:
        names = [*fast, *small]
    least = max(_bytes(matrices, names), int(LEAST_BITS * count / 8)) + overhead
    least += least // 1000 + 1  # recipes have four digits of it
    if not all(any(_fits(name, spec) for name in names) for spec in matrices):
        names = ["f16", *names]
    enough = max(least, int(empty.device.bits * count / 8) + overhead)
    size = max(least, min(empty.room, enough))
    return replace(
        empty,
        size=size,
        bits=8 * (size - overhead) / count,
        candidates=tuple(names),
        small=tuple(name for name in small if name in names),
        unfit=tuple(name for name in kernels.fast if name not in fast),
    )


def _is_calibrated(model: Checkpoint, kernels: Kernels) -> bool:
    """Whether formats are chosen by what they cost, for which the model writes text. Formats of
    whole rows need none."""
    blocks = any(formats.get(name).block_size > 1 for name in kernels.fast)
    return blocks and bool(model.architecture.gguf)


def _matrices(model: Checkpoint) -> Iterator[WeightSpec]:
    """The weights that have a format to be chosen."""
    for spec in model.specs.values():
        if spec.is_matrix and spec.role not in UNQUANTIZED:
            yield spec


def _fits(name: str, spec: WeightSpec) -> bool:
    return formats.get(name).fits(spec.shape[1])


def _smallest(spec: WeightSpec, names: Sequence[str]) -> str:
    """The smallest of some formats that fits a matrix."""
    fitting = [name for name in names if _fits(name, spec)]
    return min(fitting, key=lambda name: formats.get(name).nbytes(spec.shape), default="f16")


def _bytes(matrices: Sequence[WeightSpec], names: Sequence[str]) -> int:
    """Bytes of the matrices, each in the smallest format that fits."""
    return sum(formats.get(_smallest(s, names)).nbytes(s.shape) for s in matrices)


def _overhead(model: Checkpoint, kind: Target, names: Sequence[str]) -> int:
    """Bytes of the files beside the matrices: norms, tokenizer, graph, in some formats."""
    chosen = {
        spec.name: WeightFormat("f16" if spec.role in UNQUANTIZED else _smallest(spec, names))
        for spec in model.specs.values()
        if spec.is_matrix
    }
    return kind.files_size(model, chosen) - _bytes(list(_matrices(model)), names)


def _too_large(model: Checkpoint, choice: Choice) -> RecipeError:
    """The error for a model that does not fit: what would."""
    device, family = choice.device, model.architecture.name
    weights = sum(spec.numel for spec in model.specs.values())
    most = weights * max(0, choice.room) / choice.size
    smaller = [one for one in PUBLISHED.get(family, ()) if one.weights <= most]
    larger = [
        other.name
        for other in DEVICES.values()
        if choice.target.name in other.targets and other.usable > device.usable
    ]
    fitting = [name for name in larger if _fits_on(model, DEVICES[name], choice.target.name)]
    hints = [f"{family} models of up to {most / 1e9:.2g} B weights fit there"]
    if smaller:
        hints[0] += f", such as {smaller[-1].name}"
    if fitting:
        hints.append(f"this one fits on --device {fitting[0]}")
    return RecipeError(
        f"{model.source['model']}: {weights / 1e9:.2f} B weights are {format_size(choice.size)} at "
        f"least, and {device.name} has room for {format_size(max(0, choice.room))} beside "
        f"{choice.needs.context:,} tokens of context",
        hint="; ".join(hints),
    )


def _fits_on(model: Checkpoint, device: Device, target: str) -> bool:
    try:
        choose(model, device, target)
    except RecipeError:
        return False
    return True
