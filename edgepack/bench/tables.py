"""Results as tables, for terminals and in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from edgepack.bench.protocol import Case
from edgepack.bench.results import Bench, Loading, ModelResult, Timing
from edgepack.bench.roofline import Limit, limit
from edgepack.bench.statistics import Ratio, paired_ratio, spread
from edgepack.core.tables import align, format_size, markdown

Rows = list[list[str]]
NONE = "–"
WIDTH = 79
CONDITIONS = {
    "load": ("load", ""),
    "celsius": ("hottest sensor", " °C"),
    "battery": ("battery", " %"),
    "governor": ("governor", ""),
    "thermal_status": ("thermal status", ""),
}
"""Key of `Device.condition` → its name for people, and its unit."""
CACHED = 2
"""Weights of fewer caches than this may be read faster than memory."""


def name_case(case: Case) -> str:
    """Such as ``decode 64 at 512, 4 together``."""
    depth = f" at {case.depth}" if case.depth else ""
    return f"{case.kind} {case.tokens}{depth}{f', {case.batch} together' if case.batch > 1 else ''}"


def speeds(found: Bench) -> Rows:
    """One line for each model, number of threads and case; ratios are to the first model."""
    timings = list(_timings(found))
    columns: dict[str, Callable[[ModelResult, Timing], str]] = {"model": lambda m, _: m.name}
    if len(found.models[0].loading) > 1:
        columns["threads"] = lambda _, t: str(t.threads)
    columns["case"] = lambda _, t: name_case(t.case)
    columns["tokens/s"] = lambda _, t: f"{t.tokens_per_second:.1f}"
    columns["±"] = lambda _, t: f"{spread(t.seconds):.1%}"
    if found.ceilings.memory:
        columns["of limit"] = lambda m, t: _share(limit(t, m.work, found.ceilings))
    if len(found.models) > 1:
        columns["ratio"] = lambda m, t: NONE if m is found.models[0] else str(_ratio(found, t))
    if any(timing.joules for _, timing in timings):
        columns["J/token"] = lambda _, t: _energy(t)
    return [[*columns], *([cell(*one) for cell in columns.values()] for one in timings)]


def _share(found: Limit | None) -> str:
    return f"{found.share:.0%}" if found else NONE


def _energy(timing: Timing) -> str:
    tokens = timing.case.tokens * timing.case.batch
    return f"{median(timing.joules) / tokens:.3g}" if timing.joules else NONE


def _timings(found: Bench) -> Iterator[tuple[ModelResult, Timing]]:
    """Models side by side: all of a case, then the next case."""
    for of_one in zip(*(model.timings for model in found.models), strict=True):
        yield from zip(found.models, of_one, strict=True)


def _ratio(found: Bench, timing: Timing) -> Ratio:
    """Speed beside the first model's, paired by rounds."""
    for first in found.models[0].timings:
        if (first.case, first.threads) == (timing.case, timing.threads):
            return paired_ratio(first.seconds, timing.seconds)
    raise AssertionError("every model has the same cases")


def memory(found: Bench) -> Rows:
    """Files, loading, first token and memory of each model, with the first number of threads."""
    rows = [["model", "files", "load", "first token", "mapped", "private", "peak", "of it empty"]]
    for model in found.models:
        loading = model.loading[0]
        rows.append(
            [
                model.name,
                format_size(model.bytes),
                _seconds(median(loading.seconds)),
                _first_token(model, loading),
                _size(loading.steady.mapped),
                _size(loading.steady.anonymous),
                _size(round(median(loading.peak)) or None),
                _size(loading.before.peak),
            ]
        )
    return rows


def _first_token(model: ModelResult, loading: Loading) -> str:
    """Time from an empty context to the first token of the longest prompt, after loading."""
    prompts = [
        timing
        for timing in model.timings
        if timing.case.kind == "prompt"
        and (timing.threads, timing.case.depth, timing.case.batch) == (loading.threads, 0, 1)
    ]
    if not prompts:
        return NONE
    longest = max(prompts, key=lambda timing: timing.case.tokens)
    return f"{_seconds(median(longest.seconds))} ({longest.case.tokens})"


def _size(count: int | None) -> str:
    return NONE if count is None else format_size(count)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def limits(found: Bench) -> Rows:
    """What the device reaches: memory, and products of each type."""
    rows = [["limit", "threads", "one column", "256 columns"]]
    for read in found.ceilings.memory:
        speed = f"{median(read.bytes_per_second) / 1e9:.1f} GB/s"
        rows.append(["reading memory", str(read.threads), speed, NONE])
    for one in found.ceilings.products:
        if one.batch == 1:
            many = found.ceilings.product(one.type, one.threads, many=True)
            fast = f"{many.flops / 1e9:.0f} GFLOP/s" if many else NONE
            speed = f"{one.bytes_per_second / 1e9:.1f} GB/s"
            rows.append([f"product, {one.type}", str(one.threads), speed, fast])
    return rows


def reasons(found: Bench) -> list[str]:
    """Why decoding is below 70 % of the limit, or above it: one line a model."""
    lines = []
    for model in found.models:
        first = next((one for one in model.timings if one.case.kind == "decode"), None)
        share = limit(first, model.work, found.ceilings) if first else None
        if share and share.reason:
            lines.append(f"{model.name}: {share.reason}")
    cache = found.device.get("cache") or 0
    small = [
        model.name for model in found.models if sum(model.work.types.values()) < CACHED * cache
    ]
    if small:
        lines.append(
            f"{', '.join(small)}: a part of the weights may stay in the processor's last cache "
            f"({format_size(cache)}), which is faster than memory"
        )
    return lines


def conditions(found: Bench) -> str:
    """The state of the device before and after; empty where it tells nothing."""
    before, after = found.quiet.before, found.quiet.after
    told = [
        f"{name} {before[key]}{unit} → {after[key]}{unit}"
        for key, (name, unit) in CONDITIONS.items()
        if key in before and key in after
    ]
    return f"before → after: {', '.join(told)}" if told else ""


def terminal(found: Bench) -> list[str]:
    """Everything, for a terminal."""
    blocks = [align(speeds(found)), align(memory(found))]
    if found.ceilings.memory:
        blocks.append(align(limits(found)))
    about = textwrap.wrap(_about(found), WIDTH)
    notes = [
        line
        for note in _notes(found)
        for line in textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
    ]
    return [*about, "", *(line for block in blocks for line in [*block, ""]), *notes]


def page(found: Bench, pictures: Sequence[str] = ()) -> str:
    """Everything, as Markdown."""
    notes = _notes(found)
    parts = ["# Speed and memory", _about(found), "## Speed", "\n".join(markdown(speeds(found)))]
    parts += ["## Memory", "\n".join(markdown(memory(found)))]
    if found.ceilings.memory:
        parts += ["## Limits of the device", "\n".join(markdown(limits(found)))]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [PICTURE.format(name=name) for name in pictures]
    return "\n\n".join([*parts, EXPLAINED]) + "\n"


def _notes(found: Bench) -> list[str]:
    state = conditions(found)
    return [*reasons(found), *([state] if state else []), *found.remarks]


def _about(found: Bench) -> str:
    device = found.device
    names = [str(device.get(key)) for key in ("model", "processor", "machine") if device.get(key)]
    runtimes = ", ".join(sorted({model.runtime for model in found.models}))
    where = ", ".join([device["name"], *names, f"{device.get('cores', '?')} cores"])
    return f"{where}; {runtimes}; {found.rounds} rounds in turns; edgepack {found.edgepack}"


PICTURE = (
    '<picture><source media="(prefers-color-scheme: dark)" srcset="{name}-dark.png">'
    '<img alt="{name}" src="{name}.png"></picture>'
)
EXPLAINED = (
    "Speeds are medians over the rounds; ± is half of the middle half. Ratios are medians of the "
    "rounds' own ratios of speed to the first model, with an interval for the true median. "
    "*Of limit*: decoding beside reading all that a token needs at the measured bandwidth; prompts "
    "beside the fastest product that ggml makes here. *First token*: of the longest prompt, after "
    "loading. *Mapped* are pages of files in memory, which the system may drop; *private* is what "
    "it may not; *of it empty* is the measuring process before the model."
)
