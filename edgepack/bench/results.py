"""What a benchmark found, as it is kept in ``bench.json``: raw times of every round, and beside
them what they are read against. Everything else (medians, shares, tables, pictures) is computed
from this, also from files of long ago or of other machines.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from edgepack.bench.protocol import Case, Memory
from edgepack.core.untrusted import Untrusted, read_json, validate
from edgepack.device_profile import profile
from edgepack.device_profile.limits import Ceilings
from edgepack.errors import EdgepackError

FILE = profile.FILE


class Work(profile.Work):
    """What a token asks of the machine (see `work`): all that a device profile needs, and more."""

    factors: int
    """Bytes of L and R, and of adapters, that a decoded token reads."""
    cache: int
    """Bytes of keys and values that it reads for each token before it, and sequence."""
    attention: int
    """Operations of a token for each token before it."""

    def bytes_read(self, case: Case) -> float:
        """Bytes that one step of decoding reads, in the mean over a case."""
        history = case.depth + case.tokens / 2
        return sum(self.types.values()) + self.factors + self.cache * history * case.batch

    def operations(self, case: Case) -> float:
        """Operations of a whole case."""
        before = case.depth + case.tokens / 2
        heads = case.tokens if case.kind == "decode" else 1
        own = case.tokens * (self.flops + self.attention * before)
        return case.batch * (own + heads * self.head)


class Timing(Untrusted):
    """One case of one model with so many threads, round by round."""

    case: Case
    threads: int
    seconds: list[float] = Field(min_length=1)
    joules: list[float] = Field(default_factory=list)
    """Energy of the processor; empty where the system does not tell."""
    memory: Memory
    """After the case, in the last round."""

    @property
    def tokens_per_second(self) -> float:
        """Median; with several sequences, of all together."""
        return self.case.tokens * self.case.batch / median(self.seconds)


class Loading(Untrusted):
    """Loading and memory of one model with so many threads."""

    threads: int
    seconds: list[float] = Field(min_length=1)
    before: Memory
    """Of the worker without a model: the runtime's library, and Python where it is one."""
    loaded: Memory
    steady: Memory
    """After all cases."""
    peak: list[int]
    """Most resident memory of the process, round by round."""


class ModelResult(Untrusted):
    """A model that was run."""

    name: str
    runtime: str
    features: str
    file: str
    """Name of the file, without its folder."""
    bytes: int
    """Size of its files, adapters included."""
    work: Work
    loading: list[Loading]
    timings: list[Timing]


class Quiet(Untrusted):
    """How much else the machine did meanwhile."""

    others: float | None = None
    """Processor time that others took, as a share of all cores' time; None if unknown."""
    stolen: float | None = None
    """The same, of time that the machine itself did not get (a virtual machine's)."""
    before: dict[str, Any] = Field(default_factory=dict)
    """Temperature, governor, battery and the like, as far as the device tells."""
    after: dict[str, Any] = Field(default_factory=dict)


class Bench(Untrusted):
    """A whole run."""

    schema_version: Literal[1] = 1
    edgepack: str
    date: str
    device: dict[str, Any]
    rounds: int
    models: list[ModelResult]
    ceilings: Ceilings
    quiet: Quiet
    remarks: list[str] = Field(default_factory=list)
    """What a reader has to know: not quiet, throttled, emulated."""


def read(path: Path) -> Bench:
    """A file, or the one in a folder, that `edgepack bench` wrote."""
    place = path / FILE if path.is_dir() else path
    if not place.is_file():
        raise EdgepackError(f"{place}: no such file", hint="edgepack bench … --out DIR writes one")
    hint = "give a bench.json that edgepack bench wrote"
    return validate(Bench, read_json(place, place=str(place)), str(place), hint=hint)
