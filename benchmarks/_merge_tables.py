"""The tables of `merge_skills`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks._merge_tasks import COLA, SQL


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """Both tasks, uncompressed and compressed."""
    yield "| | settings | form | MB | SQL loss | valid | exact | CoLA loss | valid | right |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, about in results["models"].items():
        for form, found in about["forms"].items():
            cells = []
            for task in (SQL, COLA):
                one = found["tasks"][task]
                cells.append(f"{mean(one['losses']):.3f} ± {error(one['losses']):.3f}")
                cells += [
                    f"{mean(one[key]):.0%} ± {100 * error(one[key]):.0f}"
                    for key in ("valid", "right")
                ]
            size = f"{found['bytes'] / 1e6:.0f}"
            yield "| " + " | ".join([name, about["setting"], form, size, *cells]) + " |"


def differences(results: Mapping[str, Any]) -> Iterator[str]:
    """The loss of fisher less that of every other merge, paired by row."""
    models = results["models"]
    if "fisher" not in models:
        return
    yield ""
    yield "Loss of fisher less that of another merge on the same test rows (below 0: it is better):"
    yield ""
    yield "| | form | SQL | CoLA |"
    yield "|---|---|---:|---:|"
    for name in (name for name, it in models.items() if "tried" in it and name != "fisher"):
        for form in models[name]["forms"]:
            cells = []
            for task in (SQL, COLA):
                pairs = zip(
                    *(models[m]["forms"][form]["tasks"][task]["losses"] for m in ("fisher", name)),
                    strict=True,
                )
                gaps = [ours - theirs for ours, theirs in pairs]
                cells.append(f"{mean(gaps):+.3f} ± {error(gaps):.3f}")
            yield f"| {name} | {form} | " + " | ".join(cells) + " |"


def validation(results: Mapping[str, Any]) -> Iterator[str]:
    """Every setting that was tried."""
    yield ""
    yield "Validation, mean of both losses relative to those of the task's own fine-tune:"
    yield ""
    yield "| | settings | score | SQL loss | CoLA loss |"
    yield "|---|---|---:|---:|---:|"
    for name, about in results["models"].items():
        for one in about.get("tried", ()):
            numbers = f"{one['score']:.3f} | {one[SQL]:.3f} | {one[COLA]:.3f}"
            yield f"| {name} | {one['setting']} | {numbers} |"
