"""The step of a plan that heeds a device profile: what it changes, it changes in the recipe.

So the recipe that an output folder has is complete, and gives the same files without the profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgepack import formats
from edgepack.checkpoint import Checkpoint
from edgepack.core import plugins
from edgepack.device_profile.profile import DeviceProfile
from edgepack.errors import RecipeError
from edgepack.planning.formats import UNQUANTIZED
from edgepack.planning.plan import GGUF, Plan
from edgepack.recipe.fields import read_share
from edgepack.recipe.sections import Compress

SHARE = "compress.target_size"
Slow = tuple[str, float]
"""A larger type that is faster, and how many times as long the slow one takes."""
EMULATED = "--device-profile: is of an emulated device, whose speeds are no device's"


def heed(plan: Plan) -> Plan:
    """The plan with a size in bytes, and without candidates that are slow on the device."""
    compress, profile = plan.recipe.compress, plan.profile
    if compress is not None and isinstance(compress.target_size, str):
        size = _bytes(compress.target_size, profile)
        plan = _with(plan, compress := compress.model_copy(update={"target_size": size}))
    if profile is None:
        return plan
    if profile.device.emulated:
        plan = plan.adding(notes=[EMULATED])
    if compress is None or plan.target.name != GGUF:
        return plan
    if compress.is_budget and compress.candidates is None:
        plan = _leave_out(plan, compress, profile)
    named = dict(_named(plan, compress))
    return plan.adding(notes=_warnings(plan, named, profile))


def _with(plan: Plan, compress: Compress, notes: Sequence[str] = ()) -> Plan:
    recipe = plan.recipe.model_copy(update={"compress": compress})
    return replace(plan, recipe=recipe).adding(notes=notes)


def _bytes(share: str, profile: DeviceProfile | None) -> int:
    """The size that a share of the device's memory is."""
    if profile is None:
        raise RecipeError(
            f"{SHARE}: {share} is a share of a device's memory",
            hint="--device-profile FILE says which; or write bytes, such as 64MB",
        )
    if not profile.device.memory:
        raise RecipeError(
            f"{SHARE}: {share} is a share of a device's memory, and the profile of "
            f"{profile.device} does not say how much it has",
            hint="write bytes, such as 64MB",
        )
    return max(1, int(read_share(share) * profile.device.memory))


def _leave_out(plan: Plan, compress: Compress, profile: DeviceProfile) -> Plan:
    """The plan without the target's candidates that take longer than larger ones."""
    ladder = plan.target.ladder
    slow = slow_types(plan.model, ladder, profile)
    untimed = profile.untimed(ladder)
    notes = []
    if slow:
        words = [f"{name} ({times(found)})" for name, found in slow.items()]
        notes.append(f"compress: left out as slow on {profile.device}: {', '.join(words)}")
        kept = [name for name in ladder if name not in slow]
        compress = compress.model_copy(update={"candidates": kept})
    if untimed:
        notes.append(f"compress: kept, as the profile did not time them: {', '.join(untimed)}")
    return _with(plan, compress, notes)


def slow_types(
    model: Checkpoint, names: Sequence[str], profile: DeviceProfile, usual: Sequence[str] = ()
) -> dict[str, Slow]:
    """Those of some formats that take longer on a device than a larger one of `usual` (by default
    of `names`) that fits the model."""
    others = [name for name in usual or names if _fits(model, name)]
    return {name: found for name in names if (found := profile.faster(name, others)) is not None}


def times(faster: Slow) -> str:
    """How slow a type is."""
    name, ratio = faster
    return f"{ratio:.1f} × the time of {name}"


def _fits(model: Checkpoint, name: str) -> bool:
    """Whether a format can store all matrices of the blocks, so that it is a choice everywhere."""
    specs = [spec for spec in model.specs.values() if spec.block is not None]
    matrices = [s for s in specs if s.is_matrix and s.role not in UNQUANTIZED]
    return all(formats.get(name).fits(spec.shape[1]) for spec in matrices)


def _named(plan: Plan, compress: Compress) -> Iterator[tuple[str, str]]:
    """Format → the key of the recipe that names it, of those that may be in the files."""
    if not compress.is_budget:
        used = {fmt.Q for fmt in plan.formats.values()}
        yield from ((one.given, "compress.fallback") for one in plan.fallbacks)
        for key in ("embeddings", "head", "format"):
            if getattr(compress, key) in used:
                yield getattr(compress, key), f"compress.{key}"
    for name in compress.candidates or ():
        yield name, "compress.candidates"
    for glob, options in compress.overrides.items():
        if options.format is not None:
            yield options.format, f"compress.overrides.{glob}"


def _warnings(plan: Plan, named: Mapping[str, str], profile: DeviceProfile) -> list[str]:
    """What is to be said of the formats that the recipe names: they stay, slow or not."""
    every = [name for name in plugins.names("formats") if plan.target.stores(formats.get(name))]
    slow = slow_types(plan.model, list(named), profile, every)
    notes = [
        f"{named[name]}: {name} takes {times(found)}, a larger type, on {profile.device}"
        for name, found in slow.items()
    ]
    untimed = profile.untimed(named)
    if untimed:
        notes.append(f"compress: the profile did not time {', '.join(untimed)}")
    return notes
