"""Quantization formats, one per file; the file's name is the name in a recipe.

Takes values and their importance; gives a grid and codes, and values again; llama.cpp's types also
pack to bytes. Imports nothing but ``core``.
"""

from __future__ import annotations

from edgepack.core import plugins
from edgepack.formats.base import Format, GgmlFormat


def get(name: str) -> Format:
    """The format of that name."""
    found: Format = plugins.find("formats", name)
    return found


def stock() -> tuple[str, ...]:
    """Names of llama.cpp's own types that stock runtimes read."""
    every = {name: get(name) for name in plugins.names("formats")}
    return tuple(n for n, fmt in every.items() if isinstance(fmt, GgmlFormat) and not fmt.waits)


def factor_format(factors: str, columns: int) -> str:
    """The format of a factor with rows of that length: f16 where blocks of `factors` do not fit."""
    return factors if get(factors).fits(columns) else "f16"
