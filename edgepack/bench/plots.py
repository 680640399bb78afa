"""Pictures of a benchmark, each for light pages and for dark ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from edgepack.bench.results import Bench, ModelResult, Timing
from edgepack.bench.roofline import limit
from edgepack.core.pictures import save
from edgepack.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "light": ("#1b6ca8", "#d1495b", "#3c8d5a", "#8d5fa8", "#c58b2a"),
    "dark": ("#6cb6ff", "#ff8a8a", "#7fd6a0", "#c9a2ff", "#ffc66d"),
}
STYLE = {
    "light": {"text": "#24292f", "page": "#ffffff", "grid": "#d8dee4"},
    "dark": {"text": "#e6edf3", "page": "#0d1117", "grid": "#30363d"},
}
KINDS = ("png", "svg")


def draw(found: Bench, folder: Path) -> list[str]:
    """Write the pictures that a run has data for; their names."""
    pictures: dict[str, Callable[[Axes, Bench, str], None]] = {"roofline": _roofline}
    if len({timing.case.depth for timing in found.models[0].timings}) > 1:
        pictures |= {"speed": _speed, "memory": _memory}
    for name, picture in pictures.items():
        for theme in STYLE:
            with _axes(theme) as (figure, axes):
                picture(axes, found, theme)
                _legend(axes, theme)
                for kind in KINDS:
                    dark = "-dark" if theme == "dark" else ""
                    save(figure, folder / f"{name}{dark}.{kind}")
    return list(pictures)


@contextmanager
def _axes(theme: str) -> Iterator[tuple[Any, Axes]]:
    """An empty picture in the colours of a theme."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plots") from None
    style = STYLE[theme]
    text = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"))
    colours: dict[Any, Any] = dict.fromkeys(text, style["text"]) | {
        "axes.facecolor": style["page"],
        "figure.facecolor": style["page"],
        "savefig.facecolor": style["page"],
        "axes.edgecolor": style["grid"],
        "grid.color": style["grid"],
    }
    with mpl.rc_context(colours):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(which="major", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _legend(axes: Axes, theme: str) -> None:
    axes.legend(frameon=False, labelcolor=STYLE[theme]["text"], fontsize=9)


def _first(model: ModelResult, kind: str) -> list[Timing]:
    """A model's timings of a kind, one sequence, with the first number of threads; the shortest
    prompt only. Sorted by depth."""
    threads = model.loading[0].threads
    own = [
        timing
        for timing in model.timings
        if (timing.case.kind, timing.threads, timing.case.batch) == (kind, threads, 1)
    ]
    least = min((timing.case.tokens for timing in own), default=0)
    own = [timing for timing in own if timing.case.tokens == least]
    return sorted(own, key=lambda timing: timing.case.depth)


def _speed(axes: Axes, found: Bench, theme: str) -> None:
    """Decoding over the context, with the middle half of the rounds, and the limit."""
    for model, colour in zip(found.models, cycle(COLOURS[theme]), strict=False):
        timings = _first(model, "decode")
        depths = [timing.case.depth for timing in timings]
        speeds = [timing.tokens_per_second for timing in timings]
        axes.plot(depths, speeds, marker="o", color=colour, label=model.name)
        if found.rounds > 2:
            slow, fast = zip(*map(_middle_half, timings), strict=True)
            axes.fill_between(depths, slow, fast, color=colour, alpha=0.2)
        limits = [limit(timing, model.work, found.ceilings) for timing in timings]
        bounds = [one.tokens_per_second for one in limits if one]
        if len(bounds) == len(depths):
            axes.plot(depths, bounds, linestyle=":", color=colour, label="limit of memory")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the context before")
    axes.set_ylabel("decoding, tokens per second")
    axes.set_title("Speed over the context", fontsize=11)


def _middle_half(timing: Timing) -> tuple[float, float]:
    low, _, high = quantiles(timing.seconds, n=4, method="inclusive")
    return timing.case.tokens / high, timing.case.tokens / low


def _memory(axes: Axes, found: Bench, theme: str) -> None:
    """Memory of the process over the context: all of it, and the private part."""
    for model, colour in zip(found.models, cycle(COLOURS[theme]), strict=False):
        timings = [timing for timing in _first(model, "decode") if timing.memory.anonymous]
        context = [timing.case.context for timing in timings]
        private = [(timing.memory.anonymous or 0) / 1e6 for timing in timings]
        mapped = [(timing.memory.mapped or 0) / 1e6 for timing in timings]
        whole = [a + b for a, b in zip(private, mapped, strict=True)]
        axes.plot(context, whole, marker="o", color=colour, label=model.name)
        axes.plot(context, private, marker=".", linestyle="--", color=colour, label="private part")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("memory of the process, MB")
    axes.set_title("Memory over the context", fontsize=11)


def _roofline(axes: Axes, found: Bench, theme: str) -> None:
    """Operations per second over operations per byte, under the device's two limits."""
    threads = found.models[0].loading[0].threads
    types = [kind for model in found.models for kind in model.work.types]
    bandwidth, flops = found.ceilings.bandwidth(threads), found.ceilings.flops(threads, types)
    x: list[float] = []
    for model, colour in zip(found.models, cycle(COLOURS[theme]), strict=False):
        for kind, marker in (("decode", "o"), ("prompt", "s")):
            points = [_point(model, timing) for timing in _first(model, kind)]
            x += [a for a, _ in points]
            label = f"{model.name}, {kind}"
            axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    if bandwidth and flops and x:
        ridge = flops / bandwidth
        ends = [min(*x, ridge) / 2, ridge, max(*x, ridge) * 2]
        roof = [min(bandwidth * end, flops) for end in ends]
        label = f"{bandwidth / 1e9:.1f} GB/s, {flops / 1e9:.0f} GFLOP/s"
        axes.plot(ends, roof, color=STYLE[theme]["text"], linewidth=1.5, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of weights, factors and cache")
    axes.set_ylabel("operations per second")
    axes.set_title(f"Roofline, {threads} thread{'s' if threads > 1 else ''}", fontsize=11)


def _point(model: ModelResult, timing: Timing) -> tuple[float, float]:
    """Operations per byte, and per second. A prompt reads the weights once for each 512 tokens."""
    case, work = timing.case, model.work
    seconds = median(timing.seconds)
    steps = case.tokens if case.kind == "decode" else -(-case.tokens // 512)
    operations = work.operations(case)
    return operations / (steps * work.bytes_read(case)), operations / seconds
