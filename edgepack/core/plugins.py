"""Plug-ins by name: drop ``formats/q5_1.py`` and write ``q5_1`` in a recipe.

A kind is a sub-package of edgepack: ``formats``, ``architectures``, ``targets``, ``devices``. Each
public module in it but ``base`` is one plug-in and keeps it in the attribute ``PLUGIN``, whose
``name`` is that of the module. Other packages add theirs through the entry-point group
``edgepack.<kind>`` (``docs/extending.md``).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgepack.errors import EdgepackError, RecipeError

BASE = "base"
"""The module that defines the type of a kind's plug-ins; it is no plug-in itself."""


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of all plug-ins of a kind: the built-in ones, then those of other packages, each in
    alphabetical order."""
    built_in = _built_in(kind)
    return (*sorted(built_in), *sorted(set(_outside(kind)) - built_in))


@cache
def find(kind: str, name: str) -> Any:
    """The plug-in object of that name; a `RecipeError` with "did you mean" where there is none.

    Raises `EdgepackError` for a plug-in of another package that cannot be imported, that has
    another name than its entry point, or whose name is taken.
    """
    place = module(kind, name)
    entry = _outside(kind).get(name)
    if entry is None:
        return importlib.import_module(place).PLUGIN
    hint = f"upgrade or remove the package {_package(entry)}"
    try:
        plugin = entry.load()
    except (ImportError, AttributeError) as error:
        raise EdgepackError(f"{kind}: {name} cannot be loaded ({error})", hint=hint) from error
    calls_itself = getattr(plugin, "name", None)
    if calls_itself != name:
        message = f"{kind}: {place} calls itself {calls_itself!r}, not {name!r}"
        raise EdgepackError(message, hint=hint)
    return plugin


def module(kind: str, name: str) -> str:
    """The module that a plug-in is in, which is not imported; the same errors as `find`."""
    if name not in names(kind):
        raise RecipeError(f"{kind}: there is no {name!r}", hint=suggest(name, names(kind)))
    entry = _outside(kind).get(name)
    if entry is None:
        return f"edgepack.{kind}.{name}"
    if name in _built_in(kind):
        raise EdgepackError(
            f"{kind}: {name} is built in, and the package {_package(entry)} has another",
            hint=f"remove the package {_package(entry)}",
        )
    return entry.module


def suggest(word: str, words: tuple[str, ...]) -> str:
    """A hint: the one of `words` nearest to `word`, or all of them."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "choose one of: " + ", ".join(words)


def forget() -> None:
    """Look for plug-ins again: packages have come or gone since this process started."""
    importlib.invalidate_caches()
    for remembered in (names, find, _built_in, _outside):
        remembered.cache_clear()


@cache
def _built_in(kind: str) -> frozenset[str]:
    package = importlib.import_module(f"edgepack.{kind}")
    modules = (info.name for info in pkgutil.iter_modules(package.__path__))
    return frozenset(name for name in modules if name != BASE and not name.startswith("_"))


@cache
def _outside(kind: str) -> Mapping[str, EntryPoint]:
    """The entry points of other packages by name; of two packages with one name, neither."""
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"edgepack.{kind}"):
        first = entries.setdefault(entry.name, entry)
        if first.value != entry.value:
            packages = f"{_package(first)} and {_package(entry)}"
            message = f"{kind}: the packages {packages} both have {entry.name!r}"
            raise EdgepackError(message, hint="remove one of them")
    return entries


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]
