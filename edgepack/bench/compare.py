"""Two benchmark files beside each other: the same models before and after, or on two machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import log, log1p
from statistics import median
from typing import Any

from edgepack.bench.results import Bench, ModelResult, Timing
from edgepack.bench.statistics import spread
from edgepack.bench.tables import name_case
from edgepack.errors import EdgepackError

SIGNIFICANT = 2.0
"""How many times the spread of both a change has to be, to be more than chance."""


@dataclass(frozen=True)
class Change:
    """One case in both files."""

    model: str
    case: str
    threads: int
    before: float
    after: float
    noise: float
    """Half of the middle half of either's times, the larger one, as a share."""

    @property
    def ratio(self) -> float:
        """Speed afterwards as a share of the speed before."""
        return self.after / self.before

    @property
    def is_clear(self) -> bool:
        """Whether the change is more than what varies between the rounds."""
        return abs(log(self.ratio)) > SIGNIFICANT * log1p(self.noise)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"ratio": self.ratio, "is_clear": self.is_clear}


def compare(before: Bench, after: Bench) -> tuple[list[Change], list[str]]:
    """What changed, and what has to be known about it. The runs were not paired, so that a busy
    moment is in one of them only. Raises `EdgepackError` where nothing is in both."""
    changes = []
    for old, new in _pairs(before, after):
        for first, second in product(old.timings, new.timings):
            if (first.case, first.threads) == (second.case, second.threads):
                changes.append(_change(new.name, first, second))
    if not changes:
        raise EdgepackError(
            "--compare: no model, case and number of threads is in both files",
            hint="run both with the same options",
        )
    return changes, _notes(before, after)


def _pairs(before: Bench, after: Bench) -> list[tuple[ModelResult, ModelResult]]:
    """Models of the same name; if each file has one model only, those."""
    if len(before.models) == len(after.models) == 1:
        return [(before.models[0], after.models[0])]
    names = {model.name: model for model in before.models}
    return [(names[model.name], model) for model in after.models if model.name in names]


def _change(model: str, first: Timing, second: Timing) -> Change:
    return Change(
        model=model,
        case=name_case(first.case),
        threads=first.threads,
        before=first.tokens_per_second,
        after=second.tokens_per_second,
        noise=max(spread(first.seconds), spread(second.seconds)),
    )


def _notes(before: Bench, after: Bench) -> list[str]:
    notes = [f"before: {note}" for note in before.remarks]
    notes += [f"after: {note}" for note in after.remarks]
    for key in sorted({*before.device, *after.device}):
        old, new = before.device.get(key), after.device.get(key)
        if old != new and key != "memory":
            notes.append(f"another {key}: {old}, then {new}")
    runtimes = [sorted({model.runtime for model in one.models}) for one in (before, after)]
    if runtimes[0] != runtimes[1]:
        notes.append(f"another runtime: {', '.join(runtimes[0])}, then {', '.join(runtimes[1])}")
    read = [_bandwidth(one) for one in (before, after)]
    if all(read) and abs(read[1] / read[0] - 1) > SIGNIFICANT / 20:
        notes.append(f"memory is read {read[1] / read[0]:.2f} times as fast as before")
    return notes


def _bandwidth(found: Bench) -> float:
    speeds = [median(one.bytes_per_second) for one in found.ceilings.memory]
    return max(speeds, default=0.0)


def table(changes: Sequence[Change]) -> list[list[str]]:
    """Rows; the first is the header."""
    rows = [["model", "case", "threads", "before", "after", "ratio", "±", ""]]
    for one in changes:
        verdict = ("faster" if one.ratio > 1 else "slower") if one.is_clear else "no clear change"
        speeds = [f"{one.before:.1f}", f"{one.after:.1f}", f"{one.ratio:.3f}", f"{one.noise:.1%}"]
        rows.append([one.model, one.case, str(one.threads), *speeds, verdict])
    return rows
