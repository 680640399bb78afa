"""llama.cpp's tokenizer, step by step, from the keys of a GGUF file (llama-vocab.cpp).

`tokenizer.from_gguf` gives a fast tokenizer that is nearly the same. This one is slow and exact,
for short texts. Special tokens are found anywhere in the text, the longest first. Sentencepiece
merges any pair that is a token, by score and then from the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgepack.checkpoint.tokenizer import (
    FOUND_WHOLE,
    SPACE,
    adds_bos,
    byte_pairs,
    kinds,
    names,
    splitting_of,
    stripping_tokens,
    token_scores,
)
from edgepack.errors import CheckpointError

DEFAULTS = {
    "llama": {"bos": 1, "eos": 2, "space": True},
    "gpt2": {"bos": 11, "eos": 11, "space": False},
    "gemma4": {"bos": -1, "eos": -1, "space": False},
}
"""``tokenizer.ggml.model`` → defaults for keys that the file lacks; −1 is no token."""
C_SPACES = " \t\n\v\f\r"


class LlamaVocab:
    """The vocabulary of a GGUF file; `fields` are its keys."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        model = fields.get("tokenizer.ggml.model", "")
        if model not in DEFAULTS:
            raise CheckpointError(f"{place}: tokenizer.ggml.model {model!r} is not known here")
        self.tokens = names(fields, place)
        types = kinds(self.tokens, fields)
        whole = [index for index, kind in enumerate(types) if kind in FOUND_WHOLE]
        self._whole = sorted(whole, key=lambda index: -len(self.tokens[index].encode()))
        defaults = DEFAULTS[model]
        key = "tokenizer.ggml.{}".format
        self.bos = self._id(fields.get(key("bos_token_id")), defaults["bos"])
        self.eos = self._id(fields.get(key("eos_token_id")), defaults["eos"])
        self.add_bos = adds_bos(fields, place)
        self.add_eos = bool(fields.get(key("add_eos_token"), False))
        self._space = bool(fields.get(key("add_space_prefix"), defaults["space"]))
        self.stripping = stripping_tokens(self.tokens, fields, place)
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        self.bpe: Tokenizer | None = None
        self._whole_breaks = False
        if model == "llama":
            scores = token_scores(self.tokens, fields, place)
            self._scores: list[float] = np.array(scores, np.float32).tolist()
            self._bytes = [self._byte(byte, place) for byte in range(256)]
        else:
            self.bpe = byte_pairs(self.tokens, fields, place)
            self._whole_breaks = splitting_of(fields, place).whole_breaks
        if self.add_bos and self.bos < 0:
            raise CheckpointError(
                f"{place}: no token begins a text; llama.cpp puts one before every text "
                f"of a {model} vocabulary, and ends the process without one",
                hint="the source should name its bos_token",
            )

    def _id(self, given: int | None, default: int) -> int:
        """A special token's id; the default if the file has none, or one without a token."""
        return given if given is not None and 0 <= given < len(self.tokens) else default

    def _byte(self, byte: int, place: str) -> int:
        """The token of a byte; llama.cpp ends the process if a text needs one that is missing."""
        index = self._ids.get(f"<0x{byte:02X}>")
        if index is None and byte < 128:
            index = self._ids.get(chr(byte))
        if index is None:
            raise CheckpointError(
                f"{place}: the vocabulary has no token for the byte <0x{byte:02X}>",
                hint="llama.cpp needs all 256; convert the model again",
            )
        return index

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; control tokens in the text are found, `special` adds BOS and EOS."""
        ids = [self.bos] if special and self.add_bos else []
        after_special = True
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
            elif self.bpe is not None:
                ids += self._pairs(part)
            else:
                prefix = " " if self._space and after_special else ""
                ids += self._merged((prefix + part).replace(" ", SPACE))
            after_special = isinstance(part, int)
        return [*ids, self.eos] if special and self.add_eos else ids

    def _parts(self, text: str) -> Sequence[str | int]:
        """The text, cut at tokens that are matched whole; these are given as ids."""
        parts: list[str | int] = [text] if text else []
        for index in self._whole:
            token = self.tokens[index]
            if token in text:
                strip = C_SPACES if token in self.stripping else ""
                parts = [piece for part in parts for piece in _cut(part, token, index, strip)]
        return parts

    def _pairs(self, text: str) -> list[int]:
        """Byte pairs of a text; line ends that are a token are taken whole if the splitting says
        so."""
        if self.bpe is None:
            return []
        if not self._whole_breaks:
            return self.bpe.encode(text, add_special_tokens=False).ids
        ids = []
        for piece in re.findall(r"[^\n]+|\n+", text):
            whole = self._ids.get(piece) if piece[0] == "\n" else None
            found = self.bpe.encode(piece, add_special_tokens=False).ids
            ids += found if whole is None else [whole]
        return ids

    def _merged(self, text: str) -> Iterator[int]:
        """Sentencepiece's BPE: the best pair of neighbours is merged until no pair is a token."""
        symbols: list[str] = list(text)
        before = [i - 1 for i in range(len(symbols))]
        after = [i + 1 for i in range(len(symbols))]
        queue: list[tuple[float, int, int, str]] = []

        def push(left: int, right: int) -> None:
            if left >= 0 and right < len(symbols):
                pair = symbols[left] + symbols[right]
                if pair in self._ids:
                    heappush(queue, (-self._scores[self._ids[pair]], left, right, pair))

        for i in range(1, len(symbols)):
            push(i - 1, i)
        while queue:
            _, left, right, pair = heappop(queue)
            # A pair is outdated once one of its sides has been merged.
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != pair:
                continue
            symbols[left], symbols[right] = pair, ""
            after[left] = after[right]
            if after[right] < len(symbols):
                before[after[right]] = left
            push(before[left], left)
            push(left, after[left])
        for symbol in filter(None, symbols):
            if symbol in self._ids:
                yield self._ids[symbol]
            else:
                yield from (self._bytes[byte] for byte in symbol.encode())


def _cut(part: str | int, token: str, index: int, strip: str) -> Iterator[str | int]:
    """The pieces of a text between the occurrences of a token, with the token's id in between, and
    without the characters `strip` after it."""
    if isinstance(part, int):
        yield part
        return
    for number, piece in enumerate(part.split(token)):
        if number:
            yield index
            piece = piece.lstrip(strip) if strip else piece
        if piece:
            yield piece
