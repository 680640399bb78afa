"""What a device can do at most, measured: how fast it reads memory, and multiplies each type.

`edgepack bench` measures it and keeps it in ``bench.json``; `edgepack build --device-profile`
reads it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Annotated

from pydantic import Field

from edgepack.core.speeds import Count, Name
from edgepack.core.untrusted import Untrusted

PLAIN = ("f32", "f16", "q8_0")
"""Types whose products are always timed, so that files can be read against the same limit."""
Seconds = Annotated[float, Field(ge=1e-9, le=1e9)]
"""Bounds within which no quotient of two of them is 0 or infinite."""


class ReadSpeed(Untrusted):
    """How fast memory is read by so many threads."""

    threads: Count
    bytes_per_second: list[Annotated[float, Field(ge=1, le=1e18)]] = Field(min_length=1)


class Product(Untrusted):
    """How fast W·X is for a W of a type ``[rows, columns]`` and an X of `batch` columns."""

    type: Name
    threads: Count
    batch: Count
    rows: Count
    columns: Count
    bytes: Count
    """Size of W."""
    seconds: list[Seconds] = Field(min_length=1)

    @property
    def weights(self) -> int:
        """Elements of W."""
        return self.rows * self.columns

    @property
    def bits_per_weight(self) -> float:
        """Of the type."""
        return 8 * self.bytes / self.weights

    @property
    def seconds_per_weight(self) -> float:
        """In the median."""
        return median(self.seconds) / self.weights

    @property
    def bytes_per_second(self) -> float:
        """Of W, in the median."""
        return self.bytes / median(self.seconds)

    @property
    def flops(self) -> float:
        """Operations per second, in the median."""
        return 2 * self.rows * self.columns * self.batch / median(self.seconds)


class Ceilings(Untrusted):
    """Limits of the device, measured in the same run."""

    memory: list[ReadSpeed] = Field(default_factory=list)
    products: list[Product] = Field(default_factory=list)

    def bandwidth(self, threads: int) -> float | None:
        """Bytes per second: the median for so many threads, or for the nearest number."""
        if not self.memory:
            return None
        nearest = min(self.memory, key=lambda one: abs(one.threads - threads))
        return median(nearest.bytes_per_second)

    def flops(self, threads: int, types: Iterable[str]) -> float | None:
        """Operations per second of the fastest product of many columns, among some types and
        `PLAIN`: not among all, so that it does not depend on which others were timed."""
        found = (self.product(kind, threads, many=True) for kind in {*types, *PLAIN})
        return max((one.flops for one in found if one is not None), default=None)

    def product(self, kind: str, threads: int, *, many: bool = False) -> Product | None:
        """The product of a type, of one column or of many."""
        for one in self.products:
            if (one.type, one.threads, one.batch > 1) == (kind, threads, many):
                return one
        return None
