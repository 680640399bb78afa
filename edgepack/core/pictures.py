"""Pictures as files: the same drawing is the same bytes, without the time and the program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.disk import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}
"""Suffix → what matplotlib would write about a file, and is left out."""


def save(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure in the format of the suffix."""
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".")
    fixed: dict[Any, Any] = {"svg.hashsalt": "edgepack"}  # else names of shapes are random
    with mpl.rc_context(fixed), atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=kind, metadata=ABOUT[path.suffix])
