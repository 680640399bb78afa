"""Rows of a JSONL: a text, or a conversation in one of the usual layouts of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from edgepack.core.untrusted import Untrusted, explain, parse_json, shorten, validate
from edgepack.errors import CalibrationError

HINT = (
    'a row is {"text": …}, {"messages": [{"role": …, "content": …}]}, {"prompt": …, "response": …} '
    'or {"instruction": …, "output": …}'
)
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
"""Keys of a question and of its answer."""


class _Part(Untrusted):
    """A part of a message, as in transformers' layout for models that also take images."""

    type: Literal["text"] = "text"
    text: str


class _Parts(Untrusted):
    parts: list[_Part]


def _join(value: Any) -> Any:
    """The text of a content that is a list of parts."""
    if not isinstance(value, list):
        return value
    try:
        parts = _Parts.model_validate({"parts": value}).parts
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    return "".join(part.text for part in parts)


class _Message(Untrusted):
    """A message of one side; other keys (a name, calls of tools) are passed to the template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[str, BeforeValidator(_join)]


class _Text(Untrusted):
    text: str


class _Conversation(Untrusted):
    messages: list[_Message] = Field(min_length=1)


class _Input(Untrusted):
    input: str | None = None


@dataclass(frozen=True)
class Row:
    """A document (`text`), or the `messages` of a conversation."""

    text: str | None = None
    messages: tuple[dict[str, Any], ...] = ()


class Place(NamedTuple):
    """Where a row is, for errors: the recipe's key, the file's name, the line."""

    key: str
    name: str
    line: int

    def error(self, message: str, *, hint: str | None = None) -> CalibrationError:
        """The error for this row; the default hint describes a valid row."""
        where = f"{self.key}: {shorten(self.name, 100)} line {self.line}"
        return CalibrationError(f"{where} is no chat ({message})", hint=hint or HINT)

    def json_error(self, message: str, *, hint: str | None = None) -> CalibrationError:
        """The error for a line that is not JSON; its hint does not say to fetch the file again."""
        return self.error(message)


def read_rows(text: str, key: str, name: str) -> Iterator[tuple[Place, Row]]:
    """Every row with its place; empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = Place(key, name, number)
            yield place, read_row(line, place)


def read_row(line: str, place: Place) -> Row:
    """One line of a JSONL."""
    return row_of(parse_json(line, "the row", place.json_error), place)


def row_of(data: Any, place: Place) -> Row:
    """A row that JSON was read from already."""
    if not isinstance(data, dict):
        raise place.error("it is not a mapping")
    if "text" in data:
        return Row(text=validate(_Text, data, "the row", place.error).text)
    if "messages" in data:
        found = validate(_Conversation, data, "the row", place.error)
        return Row(messages=tuple(message.model_dump() for message in found.messages))
    for question, answer in PAIRS:
        if question in data and answer in data:
            return _pair(data, question, answer, place)
    raise place.error("it has none of the keys of a row")


def _pair(data: dict[str, Any], question: str, answer: str, place: Place) -> Row:
    """A question and its answer; in Alpaca's rows, an instruction may come with an input."""
    contents = []
    for role, key in (("user", question), ("assistant", answer)):
        message = {"role": role, "content": data[key]}
        read = validate(_Message, message, f"the row's {key}", place.error)
        contents.append(read.content)
    if question == "instruction":
        more = validate(_Input, data, "the row", place.error).input
        contents[0] += f"\n\n{more}" if more else ""
    roles = ("user", "assistant")
    return Row(
        messages=tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))
    )
