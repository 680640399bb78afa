"""Checks of data that others wrote (JSON, and pydantic models of it). The result is a value of the
right type and size, or an error of one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgepack.errors import EdgepackError

MAX_BYTES = 256 << 20
"""Largest JSON file that is read; the index of a 1000-shard model has 10 MB."""
LINE = 200
"""Longest quotation of somebody's input in an error, in characters."""

NOT_OPENED = "look at the path, and at who may read it"
"""Hint for a file that the system does not open."""

MakeError = Callable[..., EdgepackError]
Model = TypeVar("Model", bound=BaseModel)


class Untrusted(BaseModel):
    """A model of a file that others wrote: unknown keys are ignored, types are not converted
    (``"2"`` is no number, 2.5 no integer), numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


def read_json(path: Path, make_error: MakeError = EdgepackError, *, place: str = "") -> Any:
    """The content of a JSON file. `place` names the file in errors; the caller handles OSError."""
    place = place or path.name
    if path.stat().st_size > MAX_BYTES:
        raise make_error(f"{place}: more than {MAX_BYTES >> 20} MB of JSON", hint="fetch it again")
    return parse_json(path.read_bytes(), place, make_error)


def parse_json(data: bytes | str, place: str, make_error: MakeError = EdgepackError) -> Any:
    """The value of a JSON text whose strings can all be written as UTF-8."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair is valid JSON, but no valid text
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise make_error(f"{place}: is nested too deeply", hint="fetch the file again") from None
    except ValueError as error:
        what = shorten(str(error).splitlines()[0])
        message = f"{place}: is not valid JSON ({what})"
        raise make_error(message, hint="fetch the file again") from None
    return value


def validate(
    model: type[Model],
    data: Any,
    place: str,
    make_error: MakeError = EdgepackError,
    *,
    hint: str | None = None,
    prefix: str = "",
) -> Model:
    """`data` as `model`; the error names the first wrong key inside `place`, after `prefix`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise make_error(f"{place}: {shorten(explain(error, prefix))}", hint=hint) from None
    except RecursionError:
        raise make_error(f"{place}: is nested too deeply", hint=hint) from None


def explain(error: ValidationError, prefix: str = "") -> str:
    """The first error that pydantic found: the key, what it should be, what it is."""
    first = error.errors(include_url=False)[0]
    key = ".".join(shorten(str(part), 60) for part in first["loc"])
    key = f"{prefix}{key}" if key else ""
    if first["type"] == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return f"{key}: {reason}" if key else reason
    if first["type"] == "missing":
        return f"{key} is missing"
    wanted = first["msg"][:1].lower() + first["msg"][1:]
    return f"{key or 'the content'}: {wanted}, not {quote(first['input'])}"


def whole_number(text: str) -> int | None:
    """The number that a text of 1 to 18 digits is; None for any other text. `str.isdigit` knows
    digits that `int` does not, and `int` refuses more than 4300 of them."""
    return int(text) if _DIGITS.fullmatch(text) else None


_DIGITS = re.compile(r"[0-9]{1,18}")


def quote(value: Any) -> str:
    """Any value in an error message: short, on one line, without building its whole text."""
    if isinstance(value, dict):
        return f"a mapping with {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return repr(shorten(value)) if isinstance(value, str) else shorten(repr(value))


def shorten(text: str, limit: int = LINE) -> str:
    """At most `limit` characters of a text, line ends and control characters made visible."""
    if not text[:limit].isprintable():
        text = text[:limit].encode("unicode_escape").decode() + text[limit:]
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
