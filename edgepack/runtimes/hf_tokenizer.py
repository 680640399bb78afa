"""The tokenizer of a Hugging Face folder, for runtimes that bring none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.checkpoint.tokenizer import SPACE, from_folder
from edgepack.runtimes.chat import render

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))
}
"""Character → byte in byte-level vocabularies (GPT-2)."""


class HfTokenizer:
    """Text to tokens and back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._tokenizer = folder, from_folder(folder)
        added = self._tokenizer.encode("", add_special_tokens=True)
        self.bos: int | None = added[0] if added else None

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found = {self._tokenizer.eos_token_id}
        for name in ("generation_config.json", "config.json"):
            path = self.folder / name
            told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            value = told.get("eos_token_id")
            found |= set(value) if isinstance(value, list) else {value}
        return frozenset(token for token in found if token is not None)

    @cached_property
    def _byte_level(self) -> bool:
        backend = json.loads(self._tokenizer.backend_tokenizer.to_str())
        return not backend["model"].get("byte_fallback")

    def tokenize(self, text: str, *, bos: bool, special: bool) -> list[int]:
        """See `Scorer.tokenize`."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special
        )
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def piece(self, token: int) -> bytes:
        """See `Runtime.piece`."""
        if token in self._tokenizer.all_special_ids:
            return b""
        text = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._byte_level:
            if all(character in BYTE_OF for character in text):
                return bytes(BYTE_OF[character] for character in text)
            return text.encode()
        if found := re.fullmatch("<0x([0-9A-F]{2})>", text):
            return bytes.fromhex(found[1])
        return text.replace(SPACE, " ").encode()

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Runtime.chat_prompt`."""
        names = ("bos_token", "eos_token")
        special = {name: str(getattr(self._tokenizer, name) or "") for name in names}
        return render(self._tokenizer.chat_template, messages, special)
