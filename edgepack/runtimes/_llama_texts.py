"""Texts of a model that llama.cpp has loaded: its metadata, its chat template."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgepack.checkpoint.special import MORE_ENDS, gguf_ends
from edgepack.checkpoint.tokenizer import TEMPLATE, TEMPLATE_PREFIX
from edgepack.runtimes._llama_library import bindings
from edgepack.runtimes.chat import render

_CONTROL = ("bos", "eos", "pad", "sep")
"""Control tokens that a template may write, by llama.cpp's names."""


class LlamaTexts:
    """What a loaded model says of itself."""

    def __init__(self, model: Any) -> None:
        self._lib, self._model = bindings(), model
        self._vocab = self._lib.llama_model_get_vocab(model)

    @property
    def bos(self) -> int | None:
        """The token that every sequence starts with, None if the model adds none."""
        add = self._lib.llama_vocab_get_add_bos(self._vocab)
        return int(self._lib.llama_vocab_bos(self._vocab)) if add else None

    def more_ends(self) -> set[int]:
        """Tokens that end an answer beside those that llama.cpp knows."""
        return set(gguf_ends({MORE_ENDS: self.metadata(MORE_ENDS) or ""}))

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Runtime.chat_prompt`."""
        tokens = {name: getattr(self._lib, f"llama_vocab_{name}")(self._vocab) for name in _CONTROL}
        special = {f"{name}_token": self.control_text(token) for name, token in tokens.items()}
        return render(self._templates(), messages, special)

    def control_text(self, token: int) -> str:
        """A control token as a template writes it; none for the missing token −1."""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return text.decode()

    def metadata(self, key: str) -> str | None:
        """The text under a key of the file's metadata."""
        return self._string(self._lib.llama_model_meta_val_str, key.encode())

    def _templates(self) -> str | dict[str, str] | None:
        """The chat template; all templates by name, if none is the default."""
        if (default := self.metadata(TEMPLATE)) is not None:
            return default
        keys = (
            self._string(self._lib.llama_model_meta_key_by_index, index)
            for index in range(self._lib.llama_model_meta_count(self._model))
        )
        named = [key for key in keys if key and key.startswith(TEMPLATE_PREFIX)]
        return {
            key.removeprefix(TEMPLATE_PREFIX): self.metadata(key) or "" for key in named
        } or None

    def _string(self, function: Callable[..., int], which: Any) -> str | None:
        """The text that a C function writes into a buffer; None if it returns a length below 0."""
        size = function(self._model, which, None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        function(self._model, which, buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")
