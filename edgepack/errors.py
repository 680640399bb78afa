"""Every error that a user can act on: shown as one line and a hint. A bug stays a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EdgepackError(Exception):
    """Base of all errors with a remedy: `message` is one line, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class RecipeError(EdgepackError):
    """The recipe (or the command line) asks for something that cannot be done as written."""

    exit_code = 2


class CheckpointError(EdgepackError):
    """A model cannot be found, read, or trusted (missing, truncated, corrupted, unknown kind)."""


class CalibrationError(EdgepackError):
    """There is no usable calibration text, or its statistics cannot be computed."""


class DecompositionError(EdgepackError):
    """A weight cannot be decomposed (for example its Hessian is not finite)."""


class ExportError(EdgepackError):
    """The result cannot be written (folder exists, disk full, format cannot store it)."""


class RuntimeMissingError(EdgepackError):
    """An optional runtime or library is not installed; the hint names the extra."""


@contextmanager
def while_doing(place: str) -> Iterator[None]:
    """Prefix any `EdgepackError` raised inside with where it happened."""
    try:
        yield
    except EdgepackError as error:
        error.message = f"while {place}: {error.message}"
        error.args = (error.message,)
        raise


def missing_extra(library: str, extra: str) -> RuntimeMissingError:
    """The error for an optional dependency that is not installed."""
    return RuntimeMissingError(
        f"{library} is not installed",
        hint=f"pip install 'edgepack[{extra}]'",
    )
