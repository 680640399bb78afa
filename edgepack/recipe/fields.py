"""What the values of a recipe can be: text, paths, names and numbers with bounds.

A number is bounded where a larger one could only fill the memory or never end.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from edgepack.core.untrusted import explain, quote

MAX_SEED = 2**63 - 1
MAX_TOKENS = 10**9
MAX_LENGTH = 2**20
"""Most tokens in a sequence or a context."""
MAX_WIDTH = 2**20
MAX_RANK = 2**16
MAX_STEPS = 10**6
MAX_LIST = 64
"""Most formats, ranks or dampings in a list."""
MAX_PATH = 4096  # bytes, PATH_MAX of Linux
MAX_PART = 255  # bytes of one part of a path
MAX_NAME = 200  # bytes of a name that gets endings
MAX_SIZE = 2**60
_SHARE = r"\d{1,3}(\.\d{1,6})? ?%"


def check_plain_text(value: str) -> str:
    """Text that can be printed and written as UTF-8."""
    if not value.strip():
        raise ValueError("is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"has a control character: {quote(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has half a surrogate pair: {quote(value)}") from None
    return value


def check_path(value: str) -> str:
    """The name of a place that can exist."""
    check_plain_text(value)
    parts = [len(part.encode()) for part in value.replace(os.sep, "/").split("/")]
    if len(value.encode()) > MAX_PATH or max(parts) > MAX_PART:
        raise ValueError(f"is too long for a path: {quote(value)}")
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {quote(value)}") from None
    return value


def _file_name(value: str) -> str:
    """The name of one file or folder, without the way to it."""
    check_plain_text(value)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise ValueError(f"is a plain name, not a path: {quote(value)}")
    if len(value.encode()) > MAX_NAME:
        raise ValueError(f"has more than {MAX_NAME} bytes: {quote(value)}")
    return value


def _short(value: Any) -> Any:
    """A size before it is parsed: pydantic makes a float of as many digits as there are."""
    if isinstance(value, str) and len(value) > 40:
        raise ValueError(f"is not a size: {quote(value)}")
    return value


PathText = Annotated[str, AfterValidator(check_path)]
FileName = Annotated[str, AfterValidator(_file_name)]
FormatName = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(check_plain_text)]
Size = Annotated[ByteSize, BeforeValidator(_short), Field(gt=0, le=MAX_SIZE)]


def _size_or_share(value: Any) -> int | str:
    """Bytes, or text such as ``40%``."""
    if isinstance(value, str) and "%" in value:
        text = value.strip()
        if not re.fullmatch(_SHARE, text, re.ASCII) or not 0 < read_share(text) <= 1:
            raise ValueError(f"is no share between 0% and 100%: {quote(value)}")
        return text
    try:
        return int(_SIZE.validate_python(value))
    except ValidationError as error:
        raise ValueError(explain(error).removeprefix("the content: ")) from None


def parse_size(text: str) -> int:
    """Bytes of a size such as 8GB; raises ValueError."""
    return int(_SIZE.validate_python(text))


def read_share(text: str) -> float:
    """The number that ``40%`` stands for."""
    return float(text.removesuffix("%")) / 100


_SIZE: TypeAdapter[ByteSize] = TypeAdapter(Size)
SizeOrShare = Annotated[
    int | str,
    PlainValidator(_size_or_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0, "maximum": MAX_SIZE},
                {"type": "string", "pattern": r"^\s*(\d*\.?\d+)\s*(\w+|%)?\s*$"},
            ]
        }
    ),
]
Glob = Annotated[str, Field(max_length=500), AfterValidator(check_plain_text)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Rank = Annotated[int, Field(ge=0, le=MAX_RANK)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, and ``yes`` is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes True for 1."""
        annotation = str(cls.model_fields[str(info.field_name)].annotation)
        values = value if isinstance(value, list | tuple) else [value]
        is_number = any(kind in annotation for kind in ("int", "float", "ByteSize"))
        if is_number and any(isinstance(one, bool) for one in values):
            raise ValueError(f"takes numbers, not {quote(value)}")
        return value
