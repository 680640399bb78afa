"""Inputs that once failed, and small ones that reach far: ``READER/NAME``.

Of a parser (`tests.fuzz.parsers`) an input is one file. Of any other reader it is a folder with the
files of the case that were spoiled. The ordinary tests read all of them again.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def folder_of(reader: str) -> Path:
    """Where the inputs of a reader are."""
    return HERE / "".join(c if c.isalnum() or c in "._-" else "-" for c in reader)


def inputs_of(reader: str) -> list[bytes]:
    """The inputs of a parser."""
    return [path.read_bytes() for path in files_of(reader)]


def files_of(reader: str) -> list[Path]:
    """The files of those."""
    return sorted(path for path in folder_of(reader).glob("*") if path.is_file())


def cases_of(reader: str) -> list[Path]:
    """The inputs of any other reader, each a folder."""
    return sorted(path for path in folder_of(reader).glob("*") if path.is_dir())
