"""Numbers and tables formatted for people, in terminals and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def format_size(count: float) -> str:
    """Bytes formatted for people, in powers of 1000 as in the names of downloads."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns are padded with spaces; numeric columns are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [_is_numeric(column) for column in zip(*rows, strict=True)]
    out = []
    for row in rows:
        cells = zip(row, widths, numeric, strict=True)
        line = "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells)
        out.append(line.rstrip())
    return out


def _is_numeric(column: Sequence[str]) -> bool:
    """Whether all cells below the header are numbers, or dashes for missing numbers."""
    return all(cell[:1].isdigit() or cell == "–" for cell in column[1:])


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose source is aligned too; the first row is the header."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    right = [_is_numeric(column) for column in zip(*rows, strict=True)]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    padded = [
        [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        for row in rows
    ]
    return ["| " + " | ".join(row) + " |" for row in (padded[0], rule, *padded[1:])]
