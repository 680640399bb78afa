"""What a check says, and a list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgepack.core.tables import align
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError

Status = Literal["ok", "failed", "skipped"]
SIGNS: dict[Status, str] = {"ok": "✓", "failed": "✗", "skipped": "–"}
SHOWN = 20
"""Problems of one check that are named; the others are counted."""


UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError)
"""What readers raise for a damaged file, beside errors of ours."""


@dataclass(frozen=True)
class Check:
    """What was looked at, what came of it, and in `detail` what was found or why not."""

    name: str
    status: Status
    detail: str = ""


class Failed(Exception):  # noqa: N818  (it is the result of a check, no error of a command)
    """A check found `problems`, each a line."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


class Skipped(Exception):  # noqa: N818
    """A check cannot be made; the message says why."""


def carry_out(name: str, check: Callable[[], str]) -> list[Check]:
    """Make a check, which returns what it found: one line for it, or one for every problem."""
    try:
        return [Check(name, "ok", check())]
    except Skipped as reason:
        return [Check(name, "skipped", str(reason))]
    except Failed as found:
        shown = [Check(name, "failed", problem) for problem in found.problems[:SHOWN]]
        more = len(found.problems) - SHOWN
        return [*shown, *([Check(name, "failed", f"and {more} more")] if more > 0 else [])]
    except EdgepackError as error:
        return [Check(name, "failed", error.message)]
    except UNREADABLE as error:
        what = next(iter(str(error).splitlines()), "") or type(error).__name__
        return [Check(name, "failed", f"a file cannot be read ({shorten(what, 120)})")]


def refuse(problems: Iterable[str]) -> None:
    """Fail if there are any."""
    if found := tuple(problems):
        raise Failed(*found)


@dataclass(frozen=True)
class Verified:
    """All checks of a folder. `kind` is what it is: a target's name, or ``adapter``."""

    folder: Path
    kind: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """Those that found something."""
        return [check for check in self.checks if check.status == "failed"]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "ok": not self.failed,
            "checks": [vars(check) for check in self.checks],
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        rows = [[SIGNS[c.status], c.name, shorten(c.detail, 300)] for c in self.checks]
        count = len(self.failed)
        problems = f"{count} problem{'s' if count > 1 else ''}"
        verdict = f"{problems} found" if count else "it is what its manifest says"
        return [*align([["", "check", "found"], *rows]), "", f"{self.folder}: {verdict}"]
