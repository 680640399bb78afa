"""Speeds as shares of the device's limits, and what keeps a model from them.

Decoding cannot be faster than reading what a token needs: the limit is bandwidth / bytes. A prompt
cannot be faster than its products: the limit is the fastest product of many columns that ggml makes
here, of a type in the file, f32, f16 or q8_0. (Williams, Waterman & Patterson 2009, "Roofline".)
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.bench.results import Timing, Work
from edgepack.device_profile.limits import Ceilings

GOOD = 0.7
"""Share of the limit from which there is nothing to explain."""


@dataclass(frozen=True)
class Limit:
    """One timing beside the device's limit."""

    tokens_per_second: float
    """The limit."""
    share: float
    """What is reached of it."""
    kernels: float | None
    """Decoding only: what the products alone would reach of it, each with the speed that its type
    has here; None where a type was not timed."""

    @property
    def reason(self) -> str:
        """Why the limit is not reached, in the figures of this run; empty where it nearly is."""
        if self.share >= GOOD or self.kernels is None:
            return ""
        rest = max(0.0, 1 - self.share / self.kernels)
        return (
            f"at the speed of ggml's products of its types, its matrices alone would reach "
            f"{self.kernels:.0%} of the limit; {rest:.0%} of the time goes into small steps "
            "(L and R, attention, norms, threads that wait for one another)"
        )


def limit(timing: Timing, work: Work, ceilings: Ceilings) -> Limit | None:
    """The limit of a timing; None where the device's were not measured."""
    case, speed = timing.case, timing.tokens_per_second
    if case.kind == "prompt":
        flops = ceilings.flops(timing.threads, work.types)
        if flops is None:
            return None
        bound = case.tokens * case.batch * flops / work.operations(case)
        return Limit(bound, speed / bound, None)
    bandwidth = ceilings.bandwidth(timing.threads)
    if bandwidth is None:
        return None
    seconds = work.bytes_read(case) / bandwidth
    bound = case.batch / seconds
    products = products_seconds(work, ceilings, timing.threads) if case.batch == 1 else None
    rest = (work.bytes_read(case) - sum(work.types.values())) / bandwidth
    kernels = None if products is None else seconds / max(seconds, products + rest)
    return Limit(bound, speed / bound, kernels)


def products_seconds(work: Work, ceilings: Ceilings, threads: int) -> float | None:
    """Seconds of a token's products, each type at its own speed; None if one was not timed."""
    seconds = 0.0
    for kind, count in work.types.items():
        timed = ceilings.product(kind, threads)
        if timed is None:
            return None
        seconds += count / timed.bytes_per_second
    return seconds
