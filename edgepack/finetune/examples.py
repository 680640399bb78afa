"""Rows of a person's examples → token ids, and which of them are to be learnt.

Only answers are learnt; plain texts as a whole. Messages go through the model's own chat template,
and prompt and answer are tokenized apart, because a runtime tokenizes the prompt alone too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgepack.calibration.rows import Place, Row, read_row, row_of
from edgepack.calibration.text import read
from edgepack.checkpoint import special, templates
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.checkpoint import Checkpoint

IGNORED = -100
"""The label of a position that is not learnt, as in PyTorch and transformers."""
ASSISTANT = "assistant"
Segment = tuple[str, bool]
"""A piece of text, and whether it is learnt."""


@dataclass(frozen=True)
class Example:
    """ids ``[n]``, and for every position the token to predict there, or `IGNORED`."""

    ids: Tensor
    labels: Tensor

    @property
    def answers(self) -> int:
        """Number of tokens to learn."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Examples:
    """The examples of a file; `skipped` are the errors of rows that were left out."""

    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(len(example.ids) for example in self.examples)


def read_examples(
    path: Path, checkpoint: Checkpoint, length: int, key: str = "data", *, skip: bool = False
) -> Examples:
    """The examples of a ``.jsonl`` (a row a line), a ``.json`` (a list of rows) or a plain text.

    None is longer than `length` tokens: texts are cut into pieces, a chat that is longer is an
    error. Rows that cannot be used are errors that name the line; with `skip` they are left out.
    """
    text = read(path, key)
    writer = _Writer(checkpoint, length)
    found: list[Example] = []
    skipped: list[str] = []
    for place, row in _rows(text, path, key):
        try:
            found += writer.examples(row(), place)
        except EdgepackError as error:
            if not skip:
                raise
            skipped.append(error.message)
    if not found:
        why = f"all {len(skipped)} rows are skipped" if skipped else "it has no rows"
        raise EdgepackError(
            f"{key}: {shorten(path.name, 100)} has nothing to learn ({why})",
            hint='a row is {"messages": [{"role": "user", "content": …}, {"role": "assistant", '
            '"content": …}]}, {"prompt": …, "completion": …} or {"text": …}',
        )
    return Examples(tuple(found), tuple(skipped), hashlib.sha256(text.encode()).hexdigest())


def _rows(text: str, path: Path, key: str) -> Iterator[tuple[Place, Callable[[], Row]]]:
    """Every row with its place; it is read when it is called for, which may fail."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                place = Place(key, path.name, number)
                yield place, partial(read_row, line, place)
    elif path.suffix == ".json":
        for number, item in enumerate(_listed(text, path, key), 1):
            place = Place(key, path.name, number)
            yield place, partial(row_of, item, place)
    elif text.strip():
        yield Place(key, path.name, 1), partial(Row, text=text)


def _listed(text: str, path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise EdgepackError(
            f"{key}: {shorten(path.name, 100)} is no JSON list of rows",
            hint="a file with a row a line is called .jsonl",
        )
    return found


class _Writer:
    """Turns rows into examples for one model."""

    def __init__(self, checkpoint: Checkpoint, length: int) -> None:
        self._tokenizer, self._length = checkpoint.tokenizer, length
        before, _ = special.wrapping(self._tokenizer)
        self._bos = before[:1]
        ends = special.ends(self._tokenizer, checkpoint.generation_config())
        self._end = list(ends)[:1]

    def examples(self, row: Row, place: Place) -> list[Example]:
        """Those of a row: one, but for long texts, and for answers that the template shows
        differently once another turn follows."""
        if row.text is not None:
            ids = [*self._bos, *self._encode(row.text), *self._end]
            return self._pieces(ids, place)
        return [self._example(segments, place) for segments in self._segments(row, place)]

    def _pieces(self, ids: list[int], place: Place) -> list[Example]:
        if len(ids) < 2:
            raise place.error("its text is empty")
        starts = range(0, len(ids) - 1, self._length)
        pieces = (ids[start : start + self._length + 1] for start in starts)
        return [_predicted(piece[:-1], piece[1:]) for piece in pieces]

    def _segments(self, row: Row, place: Place) -> list[list[Segment]]:
        messages = row.messages
        answers = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not answers:
            raise place.error("it has no answer of the assistant's")
        if not all(messages[i]["content"].strip() for i in answers):
            raise place.error("an answer is empty")
        if not self._tokenizer.chat_template:
            return [_plain_segments(messages)]
        full, at = self._render(messages, place), 0
        joined: list[Segment] = []
        apart: list[list[Segment]] = []
        for i in answers:
            prompt = self._render(messages[:i], place, start=True)
            upto = self._render(messages[: i + 1], place).rstrip()
            if not upto.startswith(prompt) or len(upto) == len(prompt):
                raise place.error("the chat template leaves nothing of the answer")
            if full.startswith(upto) and len(prompt) >= at:
                joined += [(full[at : len(prompt)], False), (upto[len(prompt) :], True)]
                at = len(upto)
            else:
                apart.append([(prompt, False), (upto[len(prompt) :], True)])
        return [*([joined] if joined else []), *apart]

    def _example(self, segments: Sequence[Segment], place: Place) -> Example:
        ids, learnt = list[int](), list[bool]()
        for text, is_answer in segments:
            own = self._encode(text)
            ids += own
            learnt += [is_answer] * len(own)
        if self._bos and self._bos[0] not in ids:
            ids, learnt = [*self._bos, *ids], [False, *learnt]
        while self._bos and ids[:2] == self._bos * 2:
            ids, learnt = ids[1:], learnt[1:]
        if not self._tokenizer.chat_template:
            ids, learnt = [*ids, *self._end], [*learnt, *[True] * len(self._end)]
        if len(ids) > self._length:
            raise EdgepackError(
                f"{place.key}: {shorten(place.name, 100)} line {place.line} has {len(ids)} tokens, "
                f"more than the {self._length} that are learnt at once",
                hint="shorten it, or give a larger --sequence-length",
            )
        labels = [t if known else IGNORED for t, known in zip(ids, learnt, strict=True)]
        return _predicted(ids, [*labels[1:], IGNORED])

    def _render(self, messages: Sequence[Any], place: Place, *, start: bool = False) -> str:
        names = special.names_of(self._tokenizer)
        try:
            return templates.render(
                self._tokenizer.chat_template, messages, names, add_generation_prompt=start
            )
        except templates.TemplateError as error:
            raise place.error(shorten(str(error), 150)) from None

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found


def _plain_segments(messages: Sequence[Any]) -> list[Segment]:
    """Messages of a model without a chat template, with empty lines between."""
    last = len(messages) - 1
    return [
        (m["content"] + ("\n\n" if i < last else ""), m["role"] == ASSISTANT)
        for i, m in enumerate(messages)
    ]


def _predicted(ids: Sequence[int], labels: Sequence[int]) -> Example:
    return Example(torch.tensor(ids), torch.tensor(labels))
