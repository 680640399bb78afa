"""Calibration tokens: from a text file or a JSONL of chats, or written by the model itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgepack.calibration import answers, self_text
from edgepack.calibration.rows import Place, Row, read_rows
from edgepack.checkpoint import templates
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.checkpoint.special import names_of
from edgepack.core.accelerator import product_type
from edgepack.core.disk import atomic
from edgepack.core.progress import Steps
from edgepack.core.untrusted import NOT_OPENED, shorten
from edgepack.errors import CalibrationError
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Tokens
from edgepack.recipe.sections import Calibrate
from edgepack.recipe.texts import DISTILLED, MEASURED, SOURCE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_SEQUENCES = 2  # one to calibrate on, one held out
MAX_BYTES = 1 << 30
"""Largest text that is read; tokenizing it takes about 30 times as much memory."""
_SPARE = 16
"""Tokens that a part of a text must have beyond those needed, because its end may be split
differently in the whole text."""
TOKENS_PER_COLUMN = 32  # fewer overfit H (measured: 5 a column double the held-out error)


def counts(options: Calibrate, dimensions: Dimensions) -> tuple[int, int]:
    """Numbers of (training, held-out) sequences that the options ask for."""
    widest = max(dimensions.hidden_size, dimensions.intermediate_size)
    train = -(-(options.tokens or TOKENS_PER_COLUMN * widest) // options.sequence_length)
    return train, max(1, round(train * options.held_out))


def write_tokens(decoder: Decoder, options: Calibrate, folder: Path) -> Steps[Tokens]:
    """Calibration tokens that the model writes; each finished batch is a file in `folder`."""
    train, held_out = counts(options, decoder.dimensions)
    ids = yield from _self_written(decoder, options, train + held_out, folder)
    return _split_by_counts(ids, train, held_out)


def read_tokens(
    checkpoint: Checkpoint,
    options: Calibrate,
    path: Path,
    sha256: str | None = None,
    *,
    only_answers: bool = False,
) -> Tokens:
    """Calibration tokens of a file; it is refused if it has changed from the plan's `sha256`. With
    `only_answers`, only those of answers count, where the rows are conversations."""
    train, held_out = counts(options, checkpoint.dimensions)
    encoded = encode_answers if only_answers else encode_all
    found = encoded(checkpoint.tokenizer, path, sha256=sha256)
    ids, *counted = (_sequences(part, options, path, train + held_out) for part in found)
    return _split_by_counts(ids, train, held_out, *counted)


def _split_by_counts(
    ids: Tensor, train: int, held_out: int, counted: Tensor | None = None
) -> Tokens:
    return split(ids, max(1, round(held_out / (train + held_out) * len(ids))), counted)


def split(ids: Tensor, held_out: int, counted: Tensor | None = None) -> Tokens:
    """Hold out random sequences of ``[n, length]``, because a text changes along the way."""
    n = len(ids)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:held_out].sort().values
    keep = torch.ones(n, dtype=torch.bool)
    keep[chosen] = False
    if counted is not None:
        counted = torch.cat([counted[keep], counted[chosen]])
    return Tokens(ids[keep], ids[chosen], counted)


def _self_written(decoder: Decoder, options: Calibrate, count: int, folder: Path) -> Steps[Tensor]:
    length, parts = options.sequence_length, []
    for batch in self_text.batches(decoder, count, length):
        path = folder / f"tokens-{batch.start:05d}.npy"
        if not path.exists():
            dtype = product_type(decoder.device)
            ids = yield from self_text.write(
                decoder, batch, count, length, options.seed, dtype=dtype
            )
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, ids.numpy())
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)


def _sequences(ids: Tensor, options: Calibrate, path: Path, count: int) -> Tensor:
    """Sequences from a text's tokens, evenly spread over it if it holds more than `count`."""
    found = len(ids) // options.sequence_length
    if found < MIN_SEQUENCES:
        raise _too_short(SOURCE, path, len(ids), MIN_SEQUENCES * options.sequence_length)
    sequences = ids[: found * options.sequence_length].view(found, -1)
    if found <= count:
        return sequences
    return sequences[torch.linspace(0, found - 1, count).round().long()]


def check(path: Path, checkpoint: Checkpoint, tokens: int, key: str = SOURCE) -> str:
    """The sha256 of a text that can be used; an error if it has fewer tokens than `tokens`.

    It is tokenized only up to that number. A JSONL to calibrate on is read row by row; a text to
    measure on is read as plain text.
    """
    data = _read_bytes(path, key)
    content = _decode(data, path, key)
    pieces = _pieces(checkpoint.tokenizer, content, path, key)
    found, limit = 0, tokens + _SPARE
    for piece in pieces:
        found += _count(checkpoint.tokenizer, piece, limit - found)
        if found >= limit:
            break
    for _ in pieces:  # the other rows are checked as well
        pass
    if found < tokens:
        raise _too_short(key, path, found, tokens)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, key: str = SOURCE, *, sha256: str | None = None) -> str:
    """The text of a file; it is refused if it has changed from `sha256`."""
    data = _read_bytes(path, key)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CalibrationError(
            f"{key}: {shorten(path.name, 120)} has changed since the build began",
            hint="run it again, and leave the file alone while it runs",
        )
    return _decode(data, path, key)


def encode_all(
    tokenizer: PreTrainedTokenizerFast, path: Path, *, sha256: str | None = None
) -> tuple[Tensor]:
    """`encode`, for `read_tokens`."""
    return (encode(tokenizer, path, sha256=sha256),)


def encode(tokenizer: PreTrainedTokenizerFast, path: Path, *, sha256: str | None = None) -> Tensor:
    """Token ids ``[n]`` of a text file, or of a JSONL through the chat template."""
    pieces = _pieces(tokenizer, read(path, sha256=sha256), path, SOURCE)
    ids = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    return torch.tensor([i for piece in ids for i in piece], dtype=torch.long)


def encode_answers(
    tokenizer: PreTrainedTokenizerFast, path: Path, *, sha256: str | None = None
) -> tuple[Tensor, Tensor]:
    """The ids of `encode`, and bool ``[n]``: positions whose next token is one of an answer. In a
    plain text, all."""
    text = read(path, sha256=sha256)
    if path.suffix != ".jsonl":
        ids = encode(tokenizer, path, sha256=sha256)
        return ids, torch.ones_like(ids, dtype=torch.bool)
    parts = []
    for place, row in read_rows(text, SOURCE, path.name):
        whole = _render(tokenizer, row, place)
        parts.append(answers.encode(tokenizer, whole, _spans(tokenizer, row, place, whole)))
    ids = torch.tensor([i for found, _ in parts for i in found], dtype=torch.long)
    return ids, answers.labels(torch.cat([inside for _, inside in parts]))


def _spans(
    tokenizer: PreTrainedTokenizerFast, row: Row, place: Place, whole: str
) -> list[answers.Span]:
    if row.text is not None or not tokenizer.chat_template:
        return [(0, len(whole))]

    def render(messages: Sequence[Any], start: bool) -> str:
        return (
            _render(tokenizer, Row(messages=tuple(messages)), place, start=start)
            if messages or start
            else ""
        )

    return answers.spans(row.messages, whole, render)


def _read_bytes(path: Path, key: str) -> bytes:
    """All bytes of a file; it is opened only once."""
    name = shorten(path.name, 120)
    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise CalibrationError(f"{key}: {name} is not a file", hint="name a text or a .jsonl")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror
        raise CalibrationError(
            f"{key}: {name} cannot be read ({reason})", hint=NOT_OPENED
        ) from None
    if len(data) > MAX_BYTES:
        hint = "a few megabytes are enough; take a part of it"
        raise CalibrationError(f"{key}: {name} has more than {MAX_BYTES >> 20} MB", hint=hint)
    return data


def _decode(data: bytes, path: Path, key: str) -> str:
    """The text, with line ends as ``\\n``."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = shorten(path.name, 120)
        raise CalibrationError(
            f"{key}: {name} is not UTF-8 text (byte {error.start})",
            hint="convert it, for example with iconv -f LATIN1 -t UTF-8",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str, path: Path, key: str) -> Iterator[str]:
    """The texts that are tokenized one by one."""
    if path.suffix != ".jsonl" or key == MEASURED:
        yield text
        return
    for place, row in read_rows(text, key, path.name):
        yield _render(tokenizer, row, place)


def _render(
    tokenizer: PreTrainedTokenizerFast, row: Row, place: Place, *, start: bool = False
) -> str:
    """A row as text; with `start`, the start of an answer follows. The chat template is a program
    of the model, and may fail in any way."""
    if row.text is not None:
        return row.text
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in row.messages)
    try:
        return templates.render(
            tokenizer.chat_template,
            row.messages,
            names_of(tokenizer),
            add_generation_prompt=start,
        )
    except templates.TemplateError as error:
        raise place.error(shorten(str(error), 150)) from None


def _count(tokenizer: PreTrainedTokenizerFast, text: str, enough: int) -> int:
    """Number of tokens of a text, or of a part of it that has `enough`."""
    size = 16 * enough
    while size < len(text):
        count = len(tokenizer.encode(text[:size], add_special_tokens=False))
        if count >= enough:
            return count
        size *= 4
    return len(tokenizer.encode(text, add_special_tokens=False))


def _too_short(key: str, path: Path, found: int, needed: int) -> CalibrationError:
    smaller = "context" if key == MEASURED else "sequence_length"
    section = "merge.calibrate" if key.startswith("merge.") else key.rpartition(".")[0]
    section = "calibrate" if key == DISTILLED else section
    return CalibrationError(
        f"{key}: {shorten(path.name, 120)} has {found} tokens, fewer than {needed}",
        hint=f"give a longer text, or a smaller {section}.{smaller}",
    )
