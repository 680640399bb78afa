"""Numbers and tables as people read them, in terminals and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes as people read them, powers of 1000 as in the names of downloads."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as columns padded with spaces; cells that begin with a digit stand on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [_is_numeric(column) for column in zip(*rows, strict=True)]
    out = []
    for row in rows:
        cells = zip(row, widths, numeric, strict=True)
        line = "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells)
        out.append(line.rstrip())
    return out


def _is_numeric(column: Sequence[str]) -> bool:
    """Whether the cells below the header are numbers, or the dash of a missing one."""
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
