"""Pictures of results, with matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.comparison.compare import OTHERS, Point, frontier
from edgepack.core.pictures import save
from edgepack.errors import missing_extra
from edgepack.planning.target import get, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = ("#1b6ca8", "#d1495b", "#8d5fa8")
STOCK_COLOUR, OTHERS_COLOUR = "#8a8a8a", "#c58b2a"

ROOM = (70, 12)
"""Pixels (of a hundred to the inch) that a label takes."""


def available() -> None:
    """Raise the error that says what to install, before the work whose result is to be drawn."""
    if find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "plots")


def chart(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty picture with named axes, y logarithmic."""
    available()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.margins(x=0.08)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=11)
    axes.grid(which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def pareto(points: Sequence[Point], paths: Sequence[Path]) -> None:
    """KL over file size, ours and stock's frontier, into files of the kinds their names say."""
    figure, axes = chart(
        "Distance from the original at a given size (lower left is better)",
        "size of all files, MB",
        "mean KL to the original, nats per token",
    )
    peers = {maker: STOCK_COLOUR for name in names() if (maker := get(name).maker)}
    peers[OTHERS] = OTHERS_COLOUR
    recipes = sorted({point.maker for point in points} - set(peers))
    labels: list[tuple[Point, bool, str]] = []
    for name, colour in {**peers, **dict(zip(recipes, cycle(OURS), strict=False))}.items():
        ours = name in recipes
        drawn = [point for point in points if point.maker == name]
        if not drawn:
            continue
        best = frontier(drawn)
        line = [p.nbytes / 1e6 for p in best], [p.kl_mean for p in best]
        axes.plot(*line, color=colour, linewidth=1.5, marker="o", markersize=5, label=name)
        rest = [p for p in drawn if p not in best]
        axes.scatter(
            [p.nbytes / 1e6 for p in rest], [p.kl_mean for p in rest], s=14, color=colour, alpha=0.5
        )
        labels += [(point, ours, colour) for point in best]
    _annotate(axes, labels)
    axes.legend(frameon=False)
    for path in paths:
        save(figure, path)


def _annotate(axes: Axes, labels: Sequence[tuple[Point, bool, str]]) -> None:
    """KL on the left of our points; types on the right of the others', where there is room."""
    taken: list[tuple[float, float]] = []
    for point, ours, colour in labels:
        at = point.nbytes / 1e6, point.kl_mean
        x, y = axes.transData.transform(at)
        if not ours:
            if any(abs(x - a) < ROOM[0] and abs(y - b) < ROOM[1] for a, b in taken):
                continue
            taken.append((x, y))
        place, side = ((-6, -9), "right") if ours else ((4, 5), "left")
        axes.annotate(
            f"{point.kl_mean:.3g}" if ours else _type(point),
            at,
            xytext=place,
            textcoords="offset points",
            horizontalalignment=side,
            fontsize=8,
            color=colour,
        )


def _type(point: Point) -> str:
    """The type of a file of stock's, or another's name."""
    if point.maker == OTHERS:
        return Path(point.label).stem
    label = point.label.split(" + ")[0].removeprefix("stock")
    if label.startswith("plain rounding"):
        return "our mixture"
    return label.removeprefix("plain ").split(",")[0].strip() or "our mixture"
