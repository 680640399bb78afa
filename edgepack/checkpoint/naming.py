"""Errors that say which of several models is meant: every one has a config.json and a
model.safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Put the model's name before any `CheckpointError` raised inside that does not begin with
    it."""
    try:
        yield
    except CheckpointError as error:
        if error.message.startswith((model, f"{Path(model).name}:")):
            raise
        message = f"{shorten(model, 100)}: {error.message}"
        raise CheckpointError(message, hint=error.hint) from error
