"""Ways to merge one tensor of several models; one file a method, found by its name."""

from __future__ import annotations

from edgepack.core import plugins
from edgepack.merge.methods.base import Method

KIND = "merge.methods"


def names() -> tuple[str, ...]:
    """The names of all methods."""
    return plugins.names(KIND)


def get(name: str) -> Method:
    """The method of that name; a `RecipeError` with "did you mean" where there is none."""
    method: Method = plugins.find(KIND, name)
    return method
