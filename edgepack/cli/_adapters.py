"""A user's adapters on the command line: --adapter NAME[=SCALE], and /adapter in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import say
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.runtimes.base import Runtime

AdapterNames = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME[=SCALE]", help="An adapter in DIR/adapters; may be repeated."
    ),
]
USAGE = "/adapter lists adapters; /adapter NAME on, off, or a scale such as 0.5, changes one."


def parse(asked: Sequence[str], what: str = "--adapter") -> dict[str, float]:
    """Names → scales, 1 where none is given."""
    found: dict[str, float] = {}
    for text in asked:
        name, _, scale = text.rpartition("=") if "=" in text else (text, "", "1")
        if name in found:
            raise EdgepackError(f"{what} {name}: is given twice", hint="give it one scale")
        found[name] = _scale(scale, f"{what} {text}")
    return found


def _scale(text: str, place: str) -> float:
    from edgepack.runtimes.base import MAX_SCALE

    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= MAX_SCALE:
        raise EdgepackError(
            f"{place}: {text!r} is no scale", hint=f"−{MAX_SCALE} to {MAX_SCALE}, usually 0 to 1"
        )
    return value


@dataclass
class Entry:
    """An adapter that was loaded: its file, its scale, and its scale when it is on."""

    path: Path
    scale: float
    when_on: float = 1.0

    @property
    def state(self) -> str:
        """Its state for people."""
        return f"on, scale {self.scale:g}" if self.scale else "off"


class Adapters:
    """The adapters that a chat can switch. `asked` must fit the folder's model; with `others`, the
    folder's other adapters are there too, switched off, unless something is wrong with them.
    `factors`: L and R are loaded as well."""

    def __init__(
        self,
        folder: Path,
        asked: Sequence[str] = (),
        *,
        others: bool = False,
        factors: bool = True,
    ) -> None:
        from edgepack.core import adapters
        from edgepack.core.artifact import Artifact

        target = Artifact.read(folder).manifest["target"]
        scales = parse(asked)
        for name in scales:
            adapters.find(folder, name)
        self.entries: dict[str, Entry] = {}
        for found in sorted(adapters.listed(folder), key=lambda one: one.name not in scales):
            if not (others or found.name in scales):
                continue
            try:
                path = adapters.usable(found, target, factors=factors)
            except EdgepackError as error:
                if found.name in scales:
                    raise
                say(f"(the adapter {found.name} is left out: {error.message})")
                continue
            scale = scales.get(found.name, 0.0)
            self.entries[found.name] = Entry(path, scale, scale or 1.0)

    @property
    def files(self) -> tuple[tuple[Path, float], ...]:
        """For `Model.adapters`."""
        return tuple((entry.path, entry.scale) for entry in self.entries.values())

    def command(self, line: str, runtime: Runtime) -> list[str]:
        """Carry out a line that begins with /adapter; what to tell the user."""
        words = line.split()[1:]
        if not words:
            return self._list()
        name, state = words[0], words[1] if len(words) == 2 else ""
        entry = self.entries.get(name)
        if entry is None:
            return [f"there is no adapter {name!r} here", *self._list()]
        if not state:
            return [f"{name} is {entry.state}", USAGE]
        try:
            self._change(entry, state)
            runtime.set_scales([entry.scale for entry in self.entries.values()])
        except EdgepackError as error:
            return [error.message, *([error.hint] if error.hint else [])]
        return [f"{name} is {entry.state}"]

    def _change(self, entry: Entry, state: str) -> None:
        if state == "off":
            entry.scale = 0.0
            return
        entry.scale = entry.when_on if state == "on" else _scale(state, "/adapter")
        entry.when_on = entry.scale or entry.when_on

    def _list(self) -> list[str]:
        if not self.entries:
            return ["this model has no adapters; edgepack finetune makes one"]
        return [*(f"{name} is {entry.state}" for name, entry in self.entries.items()), USAGE]
