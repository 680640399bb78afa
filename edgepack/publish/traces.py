"""What files say of the machine that they were made on: folders, the user's name, the host's.

Looked for in texts, in the metadata of GGUF and safetensors files, and in ONNX graphs; not in
numbers. A folder of this machine is certain. A name alone may be an ordinary word, and a home
folder of somebody else may be part of a chat template: these are for people to look at.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.disk import root
from edgepack.core.untrusted import shorten
from edgepack.errors import ExportError

ORDINARY = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "localhost", "home"})
"""Names of users and hosts that say nothing, and are words."""
SHORTEST = 4
"""Fewest letters of a name that is looked for; shorter ones are in every text."""
NUMBERS = ("*.onnx_data*", "*.onnx.data", "*.bin", "*.npz", "*.png")
VOCABULARY = (
    *("tokenizer.json", "tokenizer.model", "tekken.json"),
    *("vocab.*", "merges.txt", "*.tiktoken"),
)
"""Files that are full of words, in which a name says nothing."""
TOKENS = "tokenizer.ggml."
"""Start of the keys of a GGUF's vocabulary."""
CHUNK, OVERLAP = 16 << 20, 4096
"""Characters that are looked at together, and those that are looked at twice."""
AROUND = 30
"""Characters that are quoted before and behind a trace."""
HOMES = r"(?:/home/|/Users/|[A-Za-z]:[\\/]{1,4}Users[\\/]{1,4})"
"""Where systems have the folders of their users; the backslashes of JSON are doubled."""
BEFORE, BEHIND = r"(?<![\w.])", r"(?![\w-])"


@dataclass(frozen=True)
class Machine:
    """This machine: `folders` of it, and `names` of its user and itself."""

    folders: tuple[str, ...]
    user: str
    names: tuple[str, ...]

    @staticmethod
    def here(folder: Path, owner: str = "") -> Machine:
        """The one that this runs on. `folder` is what is uploaded; `owner`, the account that it
        goes to, may be named in it."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container without a name for the user's number
            user = ""
        home, above = Path.home(), folder.resolve().parent
        places = {home, root().resolve(), *(p for p in (above,) if len(p.parts) > 2)}
        folders = {str(place) for place in places if len(place.parts) > 1}
        names = {user, platform.node(), platform.node().partition(".")[0]}
        known = {*ORDINARY, owner.lower()}
        kept = (n for n in names if len(n) >= SHORTEST and n.lower() not in known)
        return Machine(tuple(sorted(folders)), user, tuple(sorted(kept)))

    @property
    def certain(self) -> re.Pattern[str]:
        """Folders of this machine."""
        escaped = [re.escape(path).replace(r"\\", r"\\{1,4}") for path in self.folders]
        if self.user:
            escaped.append(HOMES + re.escape(self.user))
        return re.compile(f"{BEFORE}(?:{'|'.join(escaped)}){BEHIND}")

    @property
    def homes(self) -> re.Pattern[str]:
        """Folders of users of any machine."""
        return re.compile(rf"{BEFORE}{HOMES}\w[\w.-]*")

    @property
    def words(self) -> re.Pattern[str] | None:
        """Names alone."""
        if not self.names:
            return None
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, self.names))}){BEHIND}")


@dataclass(frozen=True)
class Trace:
    """Where a file says something, and what, with a few characters around it."""

    file: str
    text: str
    certain: bool


def find(folder: Path, files: tuple[str, ...], machine: Machine) -> list[Trace]:
    """The first certain trace of every file, or else its first other one."""
    found = (_first(name, _texts(folder / name), machine) for name in files)
    return [trace for trace in found if trace is not None]


def find_in(made: Mapping[str, bytes], machine: Machine) -> list[Trace]:
    """The same of files that are not on disk."""
    found = (_first(name, iter([data.decode()]), machine) for name, data in made.items())
    return [trace for trace in found if trace is not None]


def _first(name: str, texts: Iterator[str], machine: Machine) -> Trace | None:
    base = name.rsplit("/", 1)[-1]
    words = None if any(fnmatch(base, p) for p in VOCABULARY) else machine.words
    doubtful = None
    certain, others = machine.certain, [machine.homes, *([words] if words else [])]
    for text in texts:
        if match := certain.search(text):
            return Trace(name, _quoted(text, match), certain=True)
        for pattern in others:
            if doubtful is None and (match := pattern.search(text)):
                doubtful = Trace(name, _quoted(text, match), certain=False)
    return doubtful


def _quoted(text: str, match: re.Match[str]) -> str:
    around = text[max(0, match.start() - AROUND) : match.end() + AROUND]
    return shorten(" ".join(around.split()), 120)


def _texts(path: Path) -> Iterator[str]:
    """The words of a file."""
    if any(fnmatch(path.name, pattern) for pattern in NUMBERS):
        return
    if path.suffix == ".gguf":
        metadata = GgufHeader(path).metadata
        about = {k: v for k, (v, *_) in metadata.items() if not k.startswith(TOKENS)}
        yield "\n".join(_strings(about))
    elif path.suffix == ".safetensors":
        yield "\n".join(_strings(_metadata(path)))
    else:
        yield from _chunks(path)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(
            f"{shorten(path.name, 80)}: is no safetensors file ({shorten(str(error), 100)})",
            hint="build the folder again",
        ) from None


def _chunks(path: Path) -> Iterator[str]:
    """A file as text, whatever it is; the ends of the pieces overlap."""
    with path.open("rb") as file:
        tail = b""
        while data := file.read(CHUNK):
            yield (tail + data).decode("utf-8", errors="replace")
            tail = data[-OVERLAP:]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (str(key), *_strings(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
