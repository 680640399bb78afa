"""The tokenizer of a Hugging Face folder, for runtimes without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.checkpoint import special
from edgepack.checkpoint.pieces import Pieces
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.core.untrusted import quote, read_json
from edgepack.errors import CheckpointError
from edgepack.runtimes.chat import render


class HfTokenizer:
    """Text to tokens and back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._tokenizer = folder, from_folder(folder)
        self._before, _ = special.wrapping(self._tokenizer)
        self.bos: int | None = self._before[0] if self._before else None

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        configs = map(self._config, ("generation_config.json", "config.json"))
        return frozenset(special.ends(self._tokenizer, *configs))

    def _config(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty if there is none."""
        path = self.folder / name
        content = read_json(path, CheckpointError) if path.is_file() else {}
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{name}: should be a JSON object, not {quote(content)}", hint="copy it again"
            )
        return content

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._tokenizer)

    def tokenize(self, text: str, *, bos: bool, special: bool) -> list[int]:
        """See `Scorer.tokenize`."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special
        )
        return [*self._before, *ids] if bos else ids

    def piece(self, token: int) -> bytes:
        """See `Runtime.piece`."""
        if token in self._tokenizer.all_special_ids:
            return b""
        return self._pieces.bytes_of(token)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Runtime.chat_prompt`."""
        names = special.names_of(self._tokenizer)
        return render(self._tokenizer.chat_template, messages, names)
