"""What planning needs to know of a device, out of the ``bench.json`` that `edgepack bench` wrote.

Speeds of a model that does not exist yet are predicted from its sizes: every type at the speed that
its products have on the device, times what models that were run there reached of such a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

from pydantic import Field

from edgepack.core.speeds import About, Count, Name
from edgepack.core.untrusted import Untrusted, quote, read_json, validate
from edgepack.device_profile.limits import Ceilings, Product, Seconds
from edgepack.errors import EdgepackError

FILE = "bench.json"
SCHEMA = 1
HINT = "edgepack bench FILE.gguf --all-types --out DIR writes DIR/bench.json"
SLOWER = 1.1
"""× the time of a larger type, from which a type is slow: less is within what times vary by."""

Kind = Literal["prompt", "decode"]
Bytes = Annotated[int, Field(ge=0, le=2**60)]


class Work(Untrusted):
    """What a token asks of the device: bytes that are read by type, operations."""

    types: dict[Name, Bytes]
    """Of weights that a decoded token reads; ``onnx`` for all of an ONNX graph's."""
    factor_types: dict[Name, Bytes] = Field(default_factory=dict)
    """Of L and R."""
    flops: Bytes
    """Operations of a token, without attention and head."""
    head: Bytes
    """Operations of the head: of each decoded token, and of a prompt's last one."""
    head_type: Name = ""

    @property
    def bytes(self) -> dict[str, int]:
        """Type → bytes, of weights and factors."""
        found = dict(self.types)
        for kind, count in self.factor_types.items():
            found[kind] = found.get(kind, 0) + count
        return found


class Case(Untrusted):
    """One thing that was timed."""

    kind: Kind
    tokens: Count
    depth: Bytes = 0
    batch: Count = 1


class Timing(Untrusted):
    """Its times, round by round."""

    case: Case
    threads: Count
    seconds: list[Seconds] = Field(min_length=1)

    @property
    def seconds_per_token(self) -> float:
        """In the median."""
        return median(self.seconds) / self.case.tokens

    def is_plain(self, kind: Kind) -> bool:
        """Whether it is of one sequence in an empty context."""
        return (self.case.kind, self.case.depth, self.case.batch) == (kind, 0, 1)


class Measured(Untrusted):
    """A model that was run."""

    work: Work
    timings: list[Timing]


class DeviceProfile(Untrusted):
    """A device: its limits, and models that were run there."""

    schema_version: Literal[1]
    device: About
    ceilings: Ceilings
    models: list[Measured] = Field(default_factory=list)

    @cached_property
    def threads(self) -> int:
        """The number of threads that decodes fastest: the models, else the products."""
        times = _decode_times(self.models) or _product_times(self.ceilings.products)
        return min(times, key=lambda threads: times[threads])

    def product(self, kind: str, *, many: bool = False) -> Product | None:
        """The product of a type with as many threads, if it was timed."""
        return self.ceilings.product(kind, self.threads, many=many)

    def untimed(self, kinds: Iterable[str]) -> list[str]:
        """Those of the types whose products were not timed."""
        return sorted(
            kind
            for kind in set(kinds)
            if self.product(kind) is None or self.product(kind, many=True) is None
        )

    def faster(self, kind: str, others: Sequence[str]) -> tuple[str, float] | None:
        """The fastest of `others` that has more bits than a type and yet takes less time, by
        `SLOWER` in the median and in every round; how many times as long the type takes. None if
        there is none, or the type was not timed."""
        own = self.product(kind)
        found = {name: timed for name in others if (timed := self.product(name)) is not None}
        if own is None:
            return None
        ratios = {
            name: own.seconds_per_weight / timed.seconds_per_weight
            for name, timed in found.items()
            if timed.bits_per_weight > own.bits_per_weight
            and min(own.seconds) / own.weights > max(timed.seconds) / timed.weights
        }
        if max(ratios.values(), default=0.0) <= SLOWER:
            return None
        name = max(ratios, key=lambda name: ratios[name])
        return name, ratios[name]


def _decode_times(models: Sequence[Measured]) -> dict[int, float]:
    """Number of threads → mean seconds of a token, of models of ggml's types."""
    times: dict[int, list[float]] = {}
    for model in models:
        for timing in model.timings:
            if timing.is_plain("decode") and "onnx" not in model.work.types:
                times.setdefault(timing.threads, []).append(timing.seconds_per_token)
    return {threads: fmean(found) for threads, found in times.items()}


def _product_times(products: Sequence[Product]) -> dict[int, float]:
    """Number of threads → mean seconds of a product of one column."""
    times: dict[int, list[float]] = {}
    for one in products:
        if one.batch == 1:
            times.setdefault(one.threads, []).append(median(one.seconds))
    return {threads: fmean(found) for threads, found in times.items()}


def read_profile(path: Path, option: str = "--device-profile") -> DeviceProfile:
    """The profile in a file, or in a folder's ``bench.json``; `option` names it in errors."""
    place = path / FILE if path.is_dir() else path
    name = f"{option}: {place}"
    if not place.is_file():
        raise EdgepackError(f"{name}: no such file", hint=HINT)
    try:
        content: Any = read_json(place, place=name)
    except OSError as error:
        raise EdgepackError(f"{name}: cannot be read ({error.strerror})", hint=HINT) from None
    if not isinstance(content, dict) or not {"schema_version", "ceilings"} <= content.keys():
        raise EdgepackError(f"{name}: is no bench.json of edgepack bench", hint=HINT)
    if content["schema_version"] != SCHEMA:
        version = quote(content["schema_version"])
        message = f"{name}: has schema {version}, and this edgepack reads {SCHEMA}"
        raise EdgepackError(message, hint="measure again with this version of edgepack")
    profile = validate(DeviceProfile, content, name, hint=HINT)
    if not profile.ceilings.memory or not _product_times(profile.ceilings.products):
        raise EdgepackError(f"{name}: has no times of products and of memory", hint=HINT)
    if not any(one.threads == profile.threads for one in profile.ceilings.products):
        message = f"{name}: no product was timed with {profile.threads} threads, as models were"
        raise EdgepackError(message, hint=HINT)
    return profile
