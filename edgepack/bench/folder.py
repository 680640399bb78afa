"""The folder that a benchmark is written into: ``bench.json``, ``bench.md``, pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgepack.bench.results import FILE, Bench, read
from edgepack.bench.tables import page
from edgepack.core.disk import atomic
from edgepack.errors import EdgepackError

PAGE = "bench.md"


def claim(folder: Path) -> None:
    """Make the folder before the work; refuse one whose files of our names are somebody else's."""
    elsewhere = "--out DIR writes elsewhere"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"--out: {folder}: cannot be written ({error.strerror})"
        raise EdgepackError(message, hint=elsewhere) from None
    if not (folder / FILE).exists() and not (folder / PAGE).exists():
        return
    try:
        read(folder)
    except EdgepackError:
        message = f"--out: {folder}: holds a {FILE} or {PAGE} that edgepack bench did not write"
        raise EdgepackError(message, hint=elsewhere) from None


def write(found: Bench, folder: Path) -> None:
    """Write all files; pictures where matplotlib is installed."""
    pictures: list[str] = []
    if find_spec("matplotlib") is not None:
        from edgepack.bench.plots import draw

        pictures = draw(found, folder)
    for name, text in (
        (FILE, found.model_dump_json(indent=1) + "\n"),
        (PAGE, page(found, pictures)),
    ):
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
