"""What a device is: a place to copy files to, run commands at, and copy files back from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from edgepack.errors import EdgepackError


@dataclass(frozen=True)
class Output:
    """What came of a command."""

    stdout: str
    stderr: str
    exit_code: int
    """As the shell has it; −N where signal N ended the command."""
    seconds: float
    """Wall-clock time, from start to end."""
    peak_bytes: int | None
    """Largest resident memory of the command; on this machine also of any one process that it
    started. A device that looks five times a second sees what lasts that long. None where it
    cannot tell."""


class Device(ABC):
    """One machine. Commands run there one after another, as lists of words that no shell reads.

    A place is the name of a file or folder on the device, absolute, to be put into commands. What a
    user can act on is an `EdgepackError` (unreachable, no such command, out of time); a command
    that fails is none, its `Output` says so.
    """

    name: ClassVar[str]

    def __init__(self, address: str = "") -> None:
        self.address = address

    def __str__(self) -> str:
        return f"{self.name}:{self.address}" if self.address else self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  (most devices hold nothing)
        """Remove what is only of use now, and end what still runs. What `push` sent stays for later
        runs; the device can be used again."""

    @abstractmethod
    def push(self, path: Path) -> str:
        """Make sure that a file, or a folder with all that is in it, is on the device; its place.

        Names are kept, so that what lies side by side here does so there; what has the same name
        and other bytes gets another place. Nothing is sent where the same bytes are there already.
        """

    @abstractmethod
    def run(self, command: Sequence[str], timeout: float) -> Output:
        """Run a program with its arguments, without input; wait for its end, `timeout` seconds at
        most. What does not end is killed, and is an error. The folder that it starts in is the
        device's own choice."""

    @abstractmethod
    def pull(self, place: str, path: Path) -> None:
        """Copy a file from a place there to `path` here, which appears when it is whole."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the device is, as JSON: `cores`, `memory` in bytes, `machine` (``x86_64``,
        ``aarch64`` …), and what else it can tell."""

    def condition(self) -> dict[str, Any]:
        """What may change while it is measured, as JSON: `load` (of the last minute), `celsius`
        (the hottest sensor), `governor`, `battery` in percent, `charging`, as far as it tells."""
        return {}

    def clear(self) -> int:
        """Remove all that `push` has sent to the device, in earlier runs too; how many bytes that
        was. Where files are used in their place there is nothing to remove."""
        return 0


def check_exists(path: Path) -> None:
    """Refuse to push what is not there."""
    if not path.exists():
        raise EdgepackError(f"{path}: no such file or folder", hint="build it first")


def out_of_time(name: str, command: Sequence[str], timeout: float) -> EdgepackError:
    """The error for a command that had to be killed."""
    return EdgepackError(
        f"{name}: {command[0]} did not end within {timeout:g} s and was killed",
        hint="give it more time, or less to do",
    )


def files_of(path: Path) -> dict[str, Path]:
    """The files of a file or folder, by the names that they have from its parent on."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {file.relative_to(path.parent).as_posix(): file for file in files}
