"""While a plan is made, large files are not read to the end: their digests may be unknown then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ONLY: ContextVar[bool] = ContextVar("headers_only", default=False)


class NotReadError(Exception):
    """A digest was asked for that nobody has computed yet. Whoever asked can do without."""


def headers_only() -> bool:
    """Whether `reading_headers` is under way."""
    return _ONLY.get()


@contextmanager
def reading_headers() -> Iterator[None]:
    """In the body, a digest of a large file is known from before, or `NotReadError` is raised."""
    token = _ONLY.set(True)
    try:
        yield
    finally:
        _ONLY.reset(token)
