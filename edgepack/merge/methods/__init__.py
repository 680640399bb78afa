"""Ways to merge one tensor of several models; one file a method, found by its name."""

from __future__ import annotations

from edgepack.core import plugins
from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError
from edgepack.merge.methods.base import Method

KIND = "merge.methods"


def names() -> tuple[str, ...]:
    """The names of all methods."""
    return plugins.names(KIND)


def get(name: str) -> Method:
    """The method of that name; a `RecipeError` with "did you mean" where there is none."""
    if name not in names():
        raise RecipeError(
            f"merge_method: there is no {quote(name)}", hint=plugins.suggest(name, names())
        )
    method: Method = plugins.find(KIND, name)
    return method
