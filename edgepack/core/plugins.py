"""Plug-ins by name: drop ``formats/q5_1.py`` and write ``q5_1`` in a recipe.

A kind is a sub-package of edgepack (``formats``, ``architectures``). Each public module in it but
``base`` is one plug-in and keeps it in the attribute ``PLUGIN``. Other packages add theirs through
the entry-point group ``edgepack.<kind>``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from edgepack.core.errors import RecipeError

BASE = "base"
"""The module that defines the type of a kind's plug-ins; it is no plug-in itself."""


@cache
def names(kind: str) -> tuple[str, ...]:
    """The sorted names of all plug-ins of a kind, built-in and from entry points."""
    package = importlib.import_module(f"edgepack.{kind}")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    built_in = {name for name in modules if name != BASE and not name.startswith("_")}
    outside = {entry.name for entry in entry_points(group=f"edgepack.{kind}")}
    return tuple(sorted(built_in | outside))


@cache
def find(kind: str, name: str) -> Any:
    """The plug-in object of that name; a `RecipeError` with a suggestion if there is none."""
    if name not in names(kind):
        raise RecipeError(f"{kind}: there is no {name!r}", hint=suggest(name, names(kind)))
    for entry in entry_points(group=f"edgepack.{kind}", name=name):
        return entry.load()
    return importlib.import_module(f"edgepack.{kind}.{name}").PLUGIN


def suggest(word: str, words: tuple[str, ...]) -> str:
    """A hint: the one of `words` nearest to `word`, or all of them."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "choose one of: " + ", ".join(words)
