"""Calibration tokens: from a text file, a JSONL of chats, or written by the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgepack.cache import atomic
from edgepack.calibration import self_text
from edgepack.checkpoint import templates
from edgepack.checkpoint._base import Checkpoint, Dimensions
from edgepack.checkpoint.special import names_of
from edgepack.decoder import Decoder
from edgepack.errors import CalibrationError, EdgepackError
from edgepack.progress import Steps
from edgepack.recipe import Calibrate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS_PER_COLUMN = 32  # fewer overfit H (measured: 5 a column double the held-out error)


@dataclass(frozen=True)
class Tokens:
    """Sequences of token ids: `train` ``[n, length]`` for H, `held_out` ``[m, length]`` to judge
    it."""

    train: Tensor
    held_out: Tensor

    @property
    def all(self) -> Tensor:
        """Both, the training sequences first."""
        return torch.cat([self.train, self.held_out])


def counts(options: Calibrate, dimensions: Dimensions) -> tuple[int, int]:
    """(training, held-out) sequences that the options ask for."""
    widest = max(dimensions.hidden_size, dimensions.intermediate_size)
    train = -(-(options.tokens or TOKENS_PER_COLUMN * widest) // options.sequence_length)
    return train, max(1, round(train * options.held_out))


def tokens(decoder: Decoder, options: Calibrate, base: Path, folder: Path | None) -> Steps[Tokens]:
    """The calibration tokens; `folder` keeps what the model has written so far, file by file; a
    text from elsewhere needs none."""
    train, held_out = counts(options, decoder.dimensions)
    if options.source == "self":
        assert folder is not None
        ids = yield from _self_written(decoder, options, train + held_out, folder)
    else:
        ids = _from_file(decoder.checkpoint, options, base, train + held_out)
    return split(ids, max(1, round(held_out / (train + held_out) * len(ids))))


def split(ids: Tensor, held_out: int) -> Tokens:
    """Hold out random sequences of ``[n, length]``: a text changes as it goes on."""
    n = len(ids)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:held_out].sort().values
    keep = torch.ones(n, dtype=torch.bool)
    keep[chosen] = False
    return Tokens(ids[keep], ids[chosen])


def _self_written(decoder: Decoder, options: Calibrate, count: int, folder: Path) -> Steps[Tensor]:
    length, parts = options.sequence_length, []
    for batch in self_text.batches(decoder, count, length):
        path = folder / f"tokens-{batch.start:05d}.npy"
        if not path.exists():
            ids = yield from self_text.write(decoder, batch, count, length, options.seed)
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, ids.numpy())
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)


def _from_file(checkpoint: Checkpoint, options: Calibrate, base: Path, count: int) -> Tensor:
    """Sequences from a file, evenly spread over it where it holds more than enough."""
    path = source_path(options.source, base)
    ids = encode(checkpoint.tokenizer, path)
    found = len(ids) // options.sequence_length
    if found < 2:
        raise CalibrationError(
            f"calibrate.source: {path.name} has {len(ids)} tokens, fewer than two sequences of "
            f"{options.sequence_length}",
            hint="give a longer text, or a smaller calibrate.sequence_length",
        )
    sequences = ids[: found * options.sequence_length].view(found, -1)
    if found <= count:
        return sequences
    return sequences[torch.linspace(0, found - 1, count).round().long()]


def source_path(source: str, base: Path, key: str = "calibrate.source") -> Path:
    """The file a source names, relative to the recipe's folder; an error where there is none."""
    path = Path(source).expanduser()
    path = path if path.is_absolute() else base / path
    if not path.is_file():
        raise CalibrationError(
            f"{key}: there is no file {path}",
            hint="give the path of a text or .jsonl file, relative to the recipe's folder",
        )
    return path


def encode(tokenizer: PreTrainedTokenizerFast, path: Path) -> Tensor:
    """Token ids ``[n]`` of a text file, or of a JSONL through the chat template."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"calibrate.source: {path.name} is not UTF-8 text (byte {error.start})"
        ) from None
    pieces = _chats(tokenizer, text, path.name) if path.suffix == ".jsonl" else [text]
    ids = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    return torch.tensor([i for piece in ids for i in piece], dtype=torch.long)


def _chats(tokenizer: PreTrainedTokenizerFast, text: str, name: str) -> Iterator[str]:
    """The rows of a JSONL as text."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _row(tokenizer, json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError, EdgepackError) as error:
            raise CalibrationError(
                f"calibrate.source: {name} line {number} is no chat ({error})",
                hint='a row is {"messages": […]}, {"prompt": …, "response": …} or {"text": …}',
            ) from None


def _row(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> str:
    if "text" in row:
        return str(row["text"])
    if "messages" in row:
        messages = row["messages"]
    else:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    if not all({"role", "content"} <= message.keys() for message in messages):
        raise ValueError("a message has a role and a content")
    if not tokenizer.chat_template:
        return "\n\n".join(str(message["content"]) for message in messages)
    return templates.render(tokenizer.chat_template, messages, names_of(tokenizer))
